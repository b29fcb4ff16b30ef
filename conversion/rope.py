"""The RoPE parameters that a native model reads, without those that its class in transformers ignores."""

from .storage import Fields


def drop_ignored_rope(native: Fields, *ignored: str) -> Fields:
    """Returns a native configuration without the RoPE parameters that have no effect.

    Args:
        native: a configuration with the field `rope_parameters`, a dict or None.
        ignored: parameters that the class ignores for every RoPE type.
    """
    rope = native["rope_parameters"]
    if rope is None:
        return native
    if rope.get("rope_type") == "dynamic":  # transformers takes `max_position_embeddings` for the original length
        ignored = (*ignored, "original_max_position_embeddings")
    return native | {"rope_parameters": {name: value for name, value in rope.items() if name not in ignored}}
