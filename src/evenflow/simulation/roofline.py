"""Step times from data sheets: every kernel takes as long as its arithmetic or its bytes.

    kernel = launch + max(FLOP / (FLOP/s * efficiency), bytes / (bytes/s * efficiency))

A layer is its projections, its attention, its MLP or experts, and what is done to every entry in
between. The attention of chunks and that of decodes are kernels of their own.

Tensor parallelism divides heads and widths by `tp` and sums the layer's output over the devices
twice. Pipeline parallelism gives each of `pp` stages its share of the layers and cuts the step's
requests into as many micro-batches, which follow each other through the stages without a gap; when
a micro-batch leaves the last stage its next step enters the first. A step, in which every request
advances once, then takes pp stage times whatever the number of micro-batches:

    stage 1   a b a b         pp = 2, requests in micro-batches a and b: no bubbles.
    stage 2     a b a b       With one request there is only a, and each stage idles half the time.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.interpolation import Value
from evenflow.execution.costs.shape import StepShape
from evenflow.simulation.collectives import ClosedFormCollectives, CollectiveCosts
from evenflow.simulation.shapes import DeviceShape, ModelShape

_ELEMENTWISE_PASSES = 10
"""Times that a token's residual vector is read or written between the matrix products of a layer:
two norms and two additions (four reads, four writes) and the copies into and out of attention."""

_ELEMENTWISE_KERNELS = 5
"""Two norms with their additions, rotation, the KV write, the gate."""

_ATTENTION_KERNELS = 3
"""Attention splits its work, computes and merges; with next to no work it takes three launches."""


class RooflineCosts:
    """The roofline of a model on an instance of tp * pp equal devices.

    Args:
        model: what is computed.
        device: on what.
        tp: devices that share each layer.
        pp: stages that share the layers.
        collectives: between devices of a stage; by default a ring over the device's fastest link.
        overhead_s: what the host adds to every step, where the device has to wait for it.

    Raises:
        ConfigError: the device cannot compute the model, or its heads cannot be shared by `tp`.
    """

    def __init__(
        self,
        model: ModelShape,
        device: DeviceShape,
        *,
        tp: int = 1,
        pp: int = 1,
        collectives: CollectiveCosts | None = None,
        overhead_s: float = 0.0,
    ) -> None:
        if model.num_heads % tp or pp > model.num_layers:
            raise ConfigError(
                f"{model.name} cannot be divided among tp {tp} x pp {pp} devices",
                why=f"it has {model.num_heads} heads and {model.num_layers} layers",
                fix="Use a --tp that divides the heads, and no more stages than layers",
            )
        self._model = model = device.form_of(model)
        self._device = device
        self._tp = tp
        self._pp = pp
        if collectives is None and tp > 1:
            collectives = ClosedFormCollectives(device.peer_link)
        self._collectives = collectives
        self._overhead_s = overhead_s
        efficiency = device.efficiency
        peak = device.flops[model.dtype_bytes]
        self._matmul_flops = peak * efficiency.matmul
        self._attention_flops = peak * efficiency.attention
        self._bandwidth = device.bandwidth_bytes_per_s * efficiency.bandwidth
        self._kv_bandwidth = device.bandwidth_bytes_per_s * efficiency.kv_bandwidth
        self._attention_launch_s = _ATTENTION_KERNELS * device.launch_s
        self._kv_bytes = model.kv_bytes_per_token_per_gpu(tp, model.num_layers)  # of one layer
        self._decode_key_s = max(
            self._pair_flops(is_decode=True) / self._attention_flops,
            self._kv_bytes / self._kv_bandwidth,
        )
        self._stage_layers = math.ceil(model.num_layers / pp)
        self._token_times: dict[int, float] = {}
        self._head_times: dict[int, float] = {}

    @property
    def description(self) -> str:
        """What it is and where its figures come from."""
        device, model = self._device, self._model
        parallel = f", tp {self._tp} pp {self._pp}" if self._tp * self._pp > 1 else ""
        return (
            f"roofline of {model.name} on {device.description}{parallel}; {device.source}; "
            f"efficiency: {device.efficiency.source}"
        )

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step."""
        num_requests = len(shape.chunks) + shape.num_decodes
        if not num_requests:
            return 0.0
        attention_s = self._attention_s(shape, min(self._pp, num_requests))
        return self._around(attention_s, shape.num_tokens, num_requests)

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of steps that only decode."""
        keys_s = num_context_tokens * self._decode_key_s
        attention_s = keys_s / min(self._pp, num_decodes) + self._attention_launch_s
        return self._around(attention_s, num_decodes, num_decodes)

    def _around(self, attention_s: Value, num_tokens: int, num_requests: int) -> Value:
        """Return the time of steps with this time of one layer's attention."""
        num_parts = min(self._pp, num_requests)
        num_tokens = math.ceil(num_tokens / num_parts)
        layer_s = self._token_s(num_tokens) + attention_s
        head_s = self._head_s(math.ceil(num_requests / num_parts))
        others_s = num_parts * head_s + self._overhead_s
        if self._pp > 1:
            others_s += self._pp * self._send_s(num_tokens)
        return self._pp * self._stage_layers * layer_s + others_s

    def _attention_s(self, shape: StepShape, num_parts: int) -> float:
        """Return the time of one layer's attention, with the work of one of `num_parts` parts."""
        seconds = 0.0
        if shape.chunks:
            num_pairs = num_keys = 0
            for new, before in shape.chunks:
                num_pairs += new * before + new * (new + 1) // 2
                num_keys += new + before
            compute_s = num_pairs * self._pair_flops(is_decode=False) / self._attention_flops
            read_s = num_keys * self._kv_bytes / self._kv_bandwidth
            seconds += max(compute_s, read_s) / num_parts + self._attention_launch_s
        if shape.num_decodes:
            keys_s = shape.num_decode_context_tokens * self._decode_key_s
            seconds += keys_s / num_parts + self._attention_launch_s
        return seconds

    def _pair_flops(self, *, is_decode: bool) -> int:
        """Return the FLOP of all heads of a device for one query and one key.

        Decodes of latent attention work on the compressed vectors themselves, with the projections
        that would expand them moved to the query's and the output's side.
        """
        heads = self._model.num_heads // self._tp
        mla = self._model.mla
        if mla is None:
            return 4 * heads * self._model.head_dim
        if is_decode:
            return 2 * heads * (2 * mla.kv_rank + mla.rope_dim)
        return 2 * heads * (mla.nope_dim + mla.rope_dim + mla.value_dim)

    def _token_s(self, num_tokens: int) -> float:
        """Return the time of one layer without its attention, for the mean layer."""
        seconds = self._token_times.get(num_tokens)
        if seconds is None:
            seconds = self._projections_s(num_tokens) + self._mlp_s(num_tokens)
            seconds += self._elementwise_s(num_tokens) + 2 * self._all_reduce_s(num_tokens)
            self._token_times[num_tokens] = seconds
        return seconds

    def _projections_s(self, num_tokens: int) -> float:
        matrices = self._model.attention_matrices(self._tp)
        return sum(self._matmul_s(num_tokens, inputs, outputs) for inputs, outputs in matrices)

    def _mlp_s(self, num_tokens: int) -> float:
        model = self._model
        dense_s = self._dense_mlp_s(num_tokens, model.intermediate_size)
        share = model.num_sparse_layers / model.num_layers
        return share * self._experts_s(num_tokens) + (1 - share) * dense_s

    def _dense_mlp_s(self, num_tokens: int, width: int) -> float:
        model = self._model
        width //= self._tp
        num_inner = (model.num_mlp_matrices - 1) * width
        first_s = self._matmul_s(num_tokens, model.hidden_size, num_inner)
        return first_s + self._matmul_s(num_tokens, width, model.hidden_size)

    def _experts_s(self, num_tokens: int) -> float:
        """Return the time of a router and the experts that some tokens are expected to visit."""
        model, moe = self._model, self._model.moe
        if moe is None:
            return 0.0
        seconds = self._matmul_s(num_tokens, model.hidden_size, moe.num_experts)
        if moe.num_shared_experts:
            width = moe.num_shared_experts * moe.intermediate_size
            seconds += self._dense_mlp_s(num_tokens, width)
        expert = model.num_mlp_matrices * model.hidden_size * moe.intermediate_size / self._tp
        num_visits = num_tokens * moe.num_experts_per_token
        compute_s = 2 * num_visits * expert / self._matmul_flops
        read_s = moe.expected_touched(num_tokens) * expert * model.dtype_bytes / self._bandwidth
        return seconds + max(compute_s, read_s) + 2 * self._device.launch_s

    def _elementwise_s(self, num_tokens: int) -> float:
        model = self._model
        num_bytes = _ELEMENTWISE_PASSES * num_tokens * model.hidden_size * model.dtype_bytes
        return num_bytes / self._bandwidth + _ELEMENTWISE_KERNELS * self._device.launch_s

    def _head_s(self, num_rows: int) -> float:
        """Return the time of the logits of some rows."""
        seconds = self._head_times.get(num_rows)
        if seconds is None:
            model = self._model
            seconds = self._matmul_s(num_rows, model.hidden_size, model.vocab_size // self._tp)
            self._head_times[num_rows] = seconds
        return seconds

    def _matmul_s(self, rows: int, inputs: int, outputs: int) -> float:
        compute_s = 2 * rows * inputs * outputs / self._matmul_flops
        num_entries = inputs * outputs + rows * (inputs + outputs)
        read_s = num_entries * self._model.dtype_bytes / self._bandwidth
        return max(compute_s, read_s) + self._device.launch_s

    def _all_reduce_s(self, num_tokens: int) -> float:
        if self._collectives is None:
            return 0.0
        return self._collectives.all_reduce_s(self._residual_bytes(num_tokens), self._tp)

    def _send_s(self, num_tokens: int) -> float:
        """Return the time to hand some tokens to the next stage."""
        link = self._device.peer_link
        return link.latency_s + self._residual_bytes(num_tokens) / link.bytes_per_s

    def _residual_bytes(self, num_tokens: int) -> int:
        return num_tokens * self._model.hidden_size * self._model.dtype_bytes
