import pytest
import torch

from med_model.model.device import multiplies_bf16


@pytest.mark.parametrize(
    "units, expected",
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True, "amx_int8": True}, False)],
    ids=["AMX", "AVX512_BF16", "neither"],
)
def test_multiplies_bf16_on_a_cpu_with_amx_or_avx512_bf16_only(units, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert multiplies_bf16.__wrapped__("cpu") is expected
