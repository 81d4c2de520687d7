"""The structures of `step.c`, as Python lays them out for it."""

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

LAYER_PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")


class Product(Structure):
    """A matrix and its bias."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "scale", "bias")),
        *((name, c_int64) for name in ("rows", "columns", "type")),
    ]


class Norm(Structure):
    """A LayerNorm or an RMSNorm."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Layer(Structure):
    """The parts of a layer, and its keys and values."""

    _fields_ = [
        *((name, Norm) for name in ("before_attention", "before_mlp")),
        *((name, Product) for name in LAYER_PRODUCTS),
        *(("keys", c_void_p), ("values", c_void_p), ("scale", c_float)),
    ]


class StepModel(Structure):
    """A model, and the memory of a step."""

    _fields_ = [
        *(
            (name, c_int64)
            for name in ("layers", "batch", "width", "heads", "groups", "size", "inner", "capacity")
        ),
        *((name, c_int64) for name in ("threads", "wanted")),
        *(("places", c_void_p), ("layer", POINTER(Layer)), ("last", Norm), ("head", Product)),
        *((name, c_void_p) for name in ("x", "y", "q", "attended", "inside", "scores")),
        *((name, c_void_p) for name in ("steps", "rounded")),
    ]
