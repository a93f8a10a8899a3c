import pytest

from mmcompress.metrics._macs import count_macs, macs_by_module

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.unit


class Attention(nn.Module):
    """Two heads of width 4 over tokens of width 8."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.project = nn.Linear(8, 24)

    def forward(self, tokens):
        b, s, _ = tokens.shape
        query, key, value = self.project(tokens).view(b, s, 3, 2, 4).permute(2, 0, 3, 1, 4)  # [b, n_h, s, h_d] each
        if self.fused:
            return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.softmax(query @ key.transpose(-1, -2), -1) @ value


def test_a_linear_layer_counts_its_weights_per_token():
    assert count_macs(nn.Linear(8, 24), {"input": torch.zeros(3, 5, 8)}) == 5 * 8 * 24


def test_a_convolution_counts_its_kernel_per_position():
    assert count_macs(nn.Conv2d(3, 16, 4, stride=4), {"input": torch.zeros(2, 3, 8, 8)}) == 4 * 16 * 3 * 4 * 4


@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_the_same_in_every_implementation(fused):
    tokens = {"tokens": torch.randn(2, 5, 8)}
    assert count_macs(Attention(fused), tokens) == 5 * 8 * 24 + 2 * (2 * 5 * 5 * 4)


def test_multi_head_attention_is_seen_into():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    macs = count_macs(attention, {"query": x, "key": x, "value": x})
    assert macs == 5 * 8 * 24 + 2 * (2 * 5 * 5 * 4) + 5 * 8 * 8
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_are_seen_into(kind, gates):
    layer = kind(4, 16, batch_first=True)
    assert count_macs(layer, {"input": torch.randn(2, 10, 4)}) == 10 * gates * 16 * (4 + 16)


def test_modules_are_counted_by_name_with_what_lies_below():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), nn.Linear(2, 3)).train()
    counts = macs_by_module(model, {"input": torch.zeros(7, 4)})
    assert counts == {"": 42, "0": 36, "0.0": 24, "0.1": 0, "0.2": 12, "1": 6}
    assert model.training


def test_inputs_without_a_common_batch_are_refused():
    with pytest.raises(ValueError, match="no common batch"):
        count_macs(nn.Bilinear(2, 2, 1), {"input1": torch.zeros(2, 2), "input2": torch.zeros(3, 2)})
