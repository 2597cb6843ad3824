"""Studies: many runs alike but for what is asked, their scores case by case, and what of the differences is certain."""
