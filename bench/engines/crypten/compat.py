"""Makes CrypTen 0.4.1 importable beside current torch; the only module that imports it.

CrypTen imports `torch.onnx.symbolic_registry`, which left torch in 1.13, for its ONNX converter alone.
That converter is not used here (`pibench.program.lower` lowers by torch.fx), so an empty stub in its place is
enough.
"""

import sys
import types

import torch.onnx

_STUB = "torch.onnx.symbolic_registry"
if _STUB not in sys.modules:
    sys.modules[_STUB] = torch.onnx.symbolic_registry = types.ModuleType(_STUB)

try:
    import crypten
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"CrypTen cannot be imported ({error}); install the benchmark's extra: pip install -e '.[bench]'"
    ) from error

__all__ = ["crypten"]
