"""Makes CrypTen 0.4.1 importable with current torch; other modules import CrypTen from here.

CrypTen imports `torch.onnx.symbolic_registry`, which torch removed in 1.13. Only its ONNX converter needs
that module. This package does not use the converter (`pibench.program.lower` lowers by torch.fx), so an empty
stub is enough.
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
