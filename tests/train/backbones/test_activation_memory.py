"""Memory estimate of training: saved activations measured again, parameters counted on the model."""

import pytest
import torch

from recaption.errors import UsageError
from train.backbones.activation_memory import ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH, training_memory
from train.backbones.dit import SIZES, Dit
from train.layers.segments import Segments


def saved_bytes(depth: int, num_tokens: int, precision: str, width: int = 192) -> int:
    model = Dit(token_width=8, text_width=32, pooled_width=32, width=width, depth=depth, num_heads=3)
    inputs = (
        torch.zeros(num_tokens, 8),
        torch.zeros(num_tokens, 3, dtype=torch.int64),
        Segments.from_lengths([num_tokens // 4, 3 * num_tokens // 4]),  # of one length they would save less
        torch.zeros(2),
        torch.zeros(8, 32),
        Segments.from_lengths([3, 5]),
        torch.zeros(2, 32),
    )
    weights = {id(parameter) for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        model(*inputs)
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_bytes_of_a_block_are_as_stated(precision: str) -> None:
    per_block = [saved_bytes(2, n, precision) - saved_bytes(1, n, precision) for n in (256, 512)]
    assert (per_block[1] - per_block[0]) / 256 / 192 == pytest.approx(
        ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[precision], rel=0.03
    )


def test_parameters_are_those_of_the_model() -> None:
    model = Dit(token_width=64, text_width=96, pooled_width=96, **SIZES["S"])
    memory = training_memory(width=384, depth=12, capacity=1000, num_ranks=8, text_width=96)
    assert memory.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert memory.sharded_state_bytes * 8 >= memory.model_state_bytes == 20 * memory.num_parameters
    assert training_memory(width=384, depth=12, capacity=2000).activations_bytes == 2 * memory.activations_bytes
    with pytest.raises(UsageError, match="multiple of 64"):
        training_memory(width=100, depth=2, capacity=10)
