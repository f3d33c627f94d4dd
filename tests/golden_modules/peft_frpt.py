"""Golden cases of FRPT: the sampler, and the head's part before the pooling."""

from __future__ import annotations

from flax import nnx

from tests.golden_modules.fields import Fields, only
from tests.golden_modules.pad_models import Arrays, imported, nhwc, with_norms
from tests.golden_modules.peft_conv import Held
from tests.golden_modules.rein_backbones import nchw
from vadapt.adapters.frpt import Sampler, warped
from vadapt.heads.retrieval import CategoryAwareness


def sampler(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    made = Sampler(
        config["channels"],
        cells=config["grid_size"],
        padding=config["padding"],
        fwhm=config["fwhm"],
        rngs=nnx.Rngs(0),
    )
    held = imported(Held(frpt=Held(sampler=made)), params).frpt.sampler
    grid = held.places(nhwc(inputs["xs"]), (config["task_input_size"],) * 2)
    return {"grid": grid, "sampled": nchw(warped(nhwc(inputs["x"]), grid))}


def retrieval_head(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, in_eps=(1e-5,))
    made = CategoryAwareness(config["channels"], reduction=config["r"], rngs=nnx.Rngs(0))
    head = imported(with_norms(Held(head=Held(awareness=made)), config), params).head.awareness
    x = nhwc(inputs["x"])
    return {"mam": nchw(head.gated(x)), "y": nchw(head(x))}


MODULES = {
    "Saliency_Sampler": sampler,
    "RetrievalHead (category-specific awareness head)": retrieval_head,
}
