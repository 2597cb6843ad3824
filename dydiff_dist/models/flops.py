"""Parameters and floating-point operations of the network, by formula: nothing is built and nothing runs.

A multiplication and an addition count as two operations. Matrix products alone are counted, attention's scores and
sums included; norms, activations and biases are left out (below 1 % at the widths of use). A causal mask saves nothing
here, because not every attention backend skips what it hides. `torch.utils.flop_counter` counts alike.

Letters: S frames, N tokens per frame, T = S N tokens, D width, A action channels, R rows of the modulation input.
"""

from dydiff_dist.models.conditioning import num_input_channels
from dydiff_dist.models.config import VideoTransformerConfig

NUM_TIMESTEP_FEATURES = 256
"""Sinusoidal features of the diffusion timestep that the network embeds."""


def parameter_count(config: VideoTransformerConfig, *, num_channels: int, num_action_channels: int = 0) -> int:
    """Number of the network's parameters.

    Args:
        config: the network.
        num_channels: C of the latents.
        num_action_channels: A of the data, 0 without actions.
    """
    D, pixels, hidden = config.width, config.patch_size**2, config.mlp_width
    num_inputs = num_input_channels(num_channels, config.input_actions(num_action_channels)) * pixels
    num_embedded = config.embedded_actions(num_action_channels)
    embed = _linear(num_inputs, D) + _linear(NUM_TIMESTEP_FEATURES, D) + _linear(D, D)
    embed += _linear(num_embedded, D) if num_embedded else 0
    attention = 3 * D * D + _linear(D, D) + (0 if config.qk_norm == "none" else 2 * config.head_width)
    mlp = _linear(D, hidden) + _linear(hidden, D)
    num_attentions = _num_attentions(config)
    block = num_attentions * attention + mlp + (num_attentions + 1) * _linear(D, 3 * D)
    head = _linear(D, 2 * D) + _linear(D, num_channels * pixels)
    head += _linear(D, 2 * num_channels) if config.patch_skip else 0
    return embed + config.depth * block + head


def forward_flops_by_part(
    config: VideoTransformerConfig,
    *,
    num_frames: int,
    height: int,
    width: int,
    num_channels: int,
    num_action_channels: int = 0,
) -> dict[str, int]:
    """Operations of one forward pass of one sample.

    Args:
        config: the network.
        num_frames: S, history and future together.
        height, width: of the latents, in latent pixels.
        num_channels: C of the latents.
        num_action_channels: A of the data, 0 without actions.

    Returns:
        Operations of ``embedding``, ``modulation``, ``projections`` (of attention), ``attention`` (scores and sums),
        ``mlp`` and ``head``; all but the first and the last are those of all blocks together.
    """
    D, pixels, hidden = config.width, config.patch_size**2, config.mlp_width
    S, N = num_frames, (height // config.patch_size) * (width // config.patch_size)
    T = S * N
    num_embedded = config.embedded_actions(num_action_channels)
    R = S if num_embedded else 1
    lengths = (N, S) if config.attention == "factorised" else (T,)
    num_inputs = num_input_channels(num_channels, config.input_actions(num_action_channels)) * pixels
    embedding = 2 * T * num_inputs * D + 2 * (NUM_TIMESTEP_FEATURES + D) * D
    embedding += 2 * S * num_embedded * D
    head = 2 * R * D * 2 * D + 2 * T * D * num_channels * pixels
    head += 2 * T * D * 2 * num_channels if config.patch_skip else 0
    return {
        "embedding": embedding,
        "modulation": config.depth * (len(lengths) + 1) * 2 * R * D * 3 * D,
        "projections": config.depth * len(lengths) * 2 * T * D * 4 * D,
        "attention": config.depth * sum(4 * T * length * D for length in lengths),
        "mlp": config.depth * 4 * T * D * hidden,
        "head": head,
    }


def forward_flops(
    config: VideoTransformerConfig,
    *,
    num_frames: int,
    height: int,
    width: int,
    num_channels: int,
    num_action_channels: int = 0,
) -> int:
    """Operations of one forward pass of one sample; arguments as for `forward_flops_by_part`."""
    return sum(
        forward_flops_by_part(
            config,
            num_frames=num_frames,
            height=height,
            width=width,
            num_channels=num_channels,
            num_action_channels=num_action_channels,
        ).values()
    )


def training_flops(
    config: VideoTransformerConfig,
    *,
    num_frames: int,
    height: int,
    width: int,
    num_channels: int,
    num_action_channels: int = 0,
    checkpoint_fraction: float = 0.0,
) -> int:
    """Operations of one sample's forward and backward pass: three forward passes, and the recomputed blocks' forward.

    Model FLOPs utilisation counts with ``checkpoint_fraction`` 0 (Chowdhery et al. 2022, appendix B): what is
    recomputed is no progress. Hardware utilisation counts with the run's fraction. Arguments as for
    `forward_flops_by_part`.
    """
    parts = forward_flops_by_part(
        config,
        num_frames=num_frames,
        height=height,
        width=width,
        num_channels=num_channels,
        num_action_channels=num_action_channels,
    )
    blocks = sum(parts.values()) - parts["embedding"] - parts["head"]
    recomputed = num_checkpointed_blocks(config.depth, checkpoint_fraction)
    return 3 * sum(parts.values()) + blocks * recomputed // config.depth


def num_checkpointed_blocks(depth: int, fraction: float) -> int:
    """How many of ``depth`` blocks are recomputed in the backward pass: ``fraction`` of them, rounded."""
    return round(fraction * depth)


def _linear(num_in: int, num_out: int) -> int:
    return (num_in + 1) * num_out


def _num_attentions(config: VideoTransformerConfig) -> int:
    return 2 if config.attention == "factorised" else 1
