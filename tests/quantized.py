"""The matrix that a quantized weight stands for, in float64."""

from hf_gpt.model.quantized_weights import unpack_int4


def dequantized(weight):
    if type(weight).__name__ == "Int4Tensor":
        scale, zero = (values.double().t()[..., None] for values in (weight.scale, weight.zero_point))
        return (unpack_int4(weight.qdata).double().view(*scale.shape[:2], -1) * scale + zero).flatten(1)
    return weight.qdata.double() * weight.scale.double()
