"""A module in the place of torch that loads what it is told to."""

import types


class Tensor:
    """The part of torch's tensors that reading asks for."""

    layout = "strided"
    device = types.SimpleNamespace(type="cpu")

    def __init__(self, array):
        self.numpy = lambda: array
        self.shape, self.dtype = array.shape, f"torch.{array.dtype}"

    def detach(self):
        return self

    resolve_conj = detach


def module(load):
    """A torch whose `load` is this function."""
    return types.SimpleNamespace(
        load=load, Tensor=Tensor, bfloat16="torch.bfloat16", strided="strided"
    )
