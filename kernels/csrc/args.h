// What crosses the border from Python: raw pointers, sizes and strides. No torch headers, so one build serves every torch.
#pragma once
#include <cstdint>

namespace dydiff {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

// A batch (B, S, rest...) is seen as (batch, frames, inner) with inner = the product of the rest.
struct Shape {
    int64_t batch, frames, inner;
};

// A tensor of that shape. Strides count elements; the inner elements of a frame are contiguous. A null pointer is "absent".
struct FrameView {
    uintptr_t data = 0;
    DType dtype = DType::f32;
    int64_t stride_batch = 0, stride_frame = 0;

    bool present() const { return data != 0; }
    int64_t item_bytes() const { return dtype == DType::f32 ? 4 : 2; }
    char* at(int64_t b, int64_t s, int64_t r) const {
        return reinterpret_cast<char*>(data) + (b * stride_batch + s * stride_frame + r) * item_bytes();
    }
};

// Which noise: Philox key, and the counter words that do not depend on the element (docs/architecture.md, agreement 2).
struct NoiseKey {
    uint64_t seed = 0;
    uint32_t step = 0, stream = 0;
    uintptr_t sample_index = 0;  // const int64_t*, one per sample; null is "no counter"

    bool present() const { return sample_index != 0; }
    int64_t index(int64_t b) const { return reinterpret_cast<const int64_t*>(sample_index)[b]; }
};

// Noise of a tensor of frames: drawn from a counter, or given; neither is "no noise".
struct NoiseSource {
    NoiseKey key;
    FrameView given;

    bool present() const { return key.present() || given.present(); }
};

// What the network predicts (arXiv 2503.00951): the mixed noise, the velocity, or the clean latents.
enum class Prediction : int { eps = 0, v = 1, x0 = 2 };

enum class FrameFilter : int { mix = 0, unmix = 1, mix_transposed = 2, unmix_transposed = 3 };

// add_noise: latents (or the posterior they are sampled from) and noise in; z, and where wanted target and x0, out.
struct AddNoiseArgs {
    static constexpr int NUM_COEFFICIENTS = 6;  // √ᾱ, √(1-ᾱ), √γ, √(1-γ) of the signal, and √γ, √(1-γ) of the noise
    Shape shape{};
    uintptr_t coefficients = 0;  // const float*, (batch, NUM_COEFFICIENTS)
    Prediction prediction = Prediction::eps;
    FrameView latents;        // x; or, with `logvar`, the posterior's mean
    FrameView logvar;         // present: x = scale·(mean + exp(logvar / 2)·posterior noise)
    NoiseSource posterior_noise;
    float scale = 1.0f;
    NoiseSource noise;
    FrameView z, target, x0;  // target and x0 may be absent
};

// denoising_loss: the target is given, or it is the mixed noise of a counter.
struct LossArgs {
    Shape shape{};
    FrameView output, target;
    NoiseSource noise;           // used where `target` is absent, mixed with the coefficients below
    uintptr_t coefficients = 0;  // const float*, (batch, 2): √γ, √(1-γ) of the noise
    uintptr_t weights = 0;       // const float*, (batch, frames); frames of weight 0 are not read
    uintptr_t loss = 0;          // forward: double*, (batch): Σ weight·(output - target)²
    FrameView grad;              // backward: 2·weight·(output - target)
};

// reverse_step: see reverse_step.h for the formula and the meaning of the coefficients.
struct ReverseStepArgs {
    static constexpr int NUM_COEFFICIENTS = 11;
    Shape shape{};
    uintptr_t coefficients = 0;  // const float*, (batch, NUM_COEFFICIENTS)
    Prediction prediction = Prediction::eps;
    bool dependent_noise = true;
    FrameView z, output, uncond_output, x0_prev, history;  // all but the first two may be absent
    int64_t history_frames = 0;
    NoiseSource noise;
    FrameView z_next, x0;  // x0 may be absent; z_next may be z
};

// modulate and its gradient: see modulation.h. A shape is (groups, tokens, channels), channels at most MAX_CHANNELS;
// shift and scale are one row per group.
constexpr int64_t MAX_CHANNELS = 4096;

struct ModulationArgs {
    Shape shape{};
    float epsilon = 0.0f;
    FrameView x, shift, scale;
    uintptr_t statistics = 0;  // float*, (groups·tokens, 2): mean and 1/σ; written forward, read backward
    FrameView out;             // forward
    FrameView grad_out, grad_x, grad_shift, grad_scale;  // backward
};

// Gradient of x + gate·branch with respect to gate (one row per group) and branch.
struct GateArgs {
    Shape shape{};
    FrameView branch, gate, grad_out, grad_branch, grad_gate;
};

}  // namespace dydiff
