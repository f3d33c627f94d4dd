"""What the tests against transformers share: random references, images, and how near is near."""

import numpy as np

from vadapt.weights.load import load_weights

RELATIVE = 2e-5  # both sides compute in float32; the bound is of the largest number


def randomised(model, std=0.2):
    """A torch model with every weight drawn anew, norms and biases too, ready to be compared."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=std)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


def images(size, batch=2):
    """Random normalised images [b, h, w, 3]."""
    return np.random.default_rng(1).normal(size=(batch, *size, 3)).astype(np.float32)


def call(model, pixels, **options):
    """What a torch model gives for images [b, h, w, 3]; its outputs still are torch's."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), **options)


def maps(tensor):
    """Torch's maps [b, d, h, w] as ours."""
    return tensor.numpy().transpose(0, 2, 3, 1)


def arrays_of(model):
    """The arrays of a torch model by name, as in memory; a file may name them otherwise."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def relative_error(found, expected):
    expected = np.asarray(expected)
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def loaded(model, reference, folder, **options):
    """The report of loading what a model of transformers saves, from the file it makes."""
    reference.save_pretrained(folder)
    return load_weights(model, folder / "model.safetensors", **options)
