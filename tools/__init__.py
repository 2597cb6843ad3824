"""The command lines; installed as ``dydiff_tools``, where ``dydiff COMMAND`` finds them."""
