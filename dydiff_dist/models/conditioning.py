"""What the network is told beside the noisy latents: history, masks and actions, as input channels.

The authors of arXiv 2503.00951 give the network, per frame: noisy latent (C), clean history latent (C, zeros on future
frames), history mask (1), first-future-frame mask (1); action channels (A) follow the same pattern.
Letters: B batch, S frames, C channels, H W height and width, A action channels.
"""

from torch import Tensor


def num_input_channels(num_channels: int, num_action_channels: int) -> int:
    """Channels of the network's input frames, 2 C + 2 + A."""
    return 2 * num_channels + 2 + num_action_channels


def assemble_input(z_BSCHW: Tensor, history: Tensor, actions_BSA: Tensor | None) -> Tensor:
    """Stacks the noisy latents and all conditioning along the channel axis.

    Args:
        z_BSCHW: noisy latents of all frames.
        history: clean latents of the first frames, (B, S_h, C, H, W), 0 < S_h < S; zeros for the unconditional branch.
        actions_BSA: the action that leads to each frame, or None where the data has none.

    Returns:
        (B, S, 2 C + 2 + A, H, W), of the dtype of ``z``.

    Raises:
        ValueError: no frame comes after the history.
    """
    B, S, C, H, W = z_BSCHW.shape
    num_history = history.shape[1]
    if num_history >= S:
        raise ValueError(f"history has {num_history} frames, z has {S} with them; leave at least one to forecast")
    num_actions = 0 if actions_BSA is None else actions_BSA.shape[-1]
    x = z_BSCHW.new_zeros(B, S, num_input_channels(C, num_actions), H, W)
    x[:, :, :C] = z_BSCHW
    x[:, :num_history, C : 2 * C] = history
    x[:, :num_history, 2 * C] = 1
    x[:, num_history, 2 * C + 1] = 1
    if actions_BSA is not None:
        x[:, :, 2 * C + 2 :] = actions_BSA[..., None, None]
    return x


def drop_history(history: Tensor, dropped_B: Tensor) -> Tensor:
    """The unconditional branch of classifier-free guidance: zeros, the mean of the data, in place of the history in the
    samples ``dropped``. Noise, as the authors take, would reach the output through a skip.

    Args:
        history: clean latents (B, S_h, C, H, W).
        dropped_B: bool, which samples lose their history.
    """
    return history.masked_fill(dropped_B[:, None, None, None, None], 0)


def check_actions(actions: Tensor | None, num_action_channels: int) -> None:
    """Refuses actions that are missing, unexpected or of another width.

    Raises:
        ValueError: both widths.
    """
    given = 0 if actions is None else actions.shape[-1]
    if given != num_action_channels:
        raise ValueError(f"the network takes {num_action_channels} action channels, the batch has {given}")
