"""Quantized weights as plain matrices."""

from hf_gpt.model.quantized_weights import unpack_int4


def dequantized(weight):
    """Returns an int8 or int4 weight as an (out, in) matrix in float64."""
    if type(weight).__name__ == "Int4Tensor":
        scale, zero = (values.double().t()[..., None] for values in (weight.scale, weight.zero_point))
        return (unpack_int4(weight.qdata).double().view(*scale.shape[:2], -1) * scale + zero).flatten(1)
    return weight.qdata.double() * weight.scale.double()
