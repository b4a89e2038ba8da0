"""Transport called with four tensors and plain options, as the tests of its backends hold them."""

from omit_hf.modeling.transport_omit import BACKENDS, Side, TransportOptions, transport_similarity


def transport(image_rows, image_mass, text_rows, text_mass, **options):
    """`transport_similarity`."""
    return transport_similarity(Side(image_rows, image_mass), Side(text_rows, text_mass), TransportOptions(**options))


def transport_by(backend, image_rows, image_mass, text_rows, text_mass, **options):
    """A backend's own function, without the checks before it."""
    sides = Side(image_rows, image_mass), Side(text_rows, text_mass)
    return BACKENDS[backend].transport(*sides, TransportOptions(**options))
