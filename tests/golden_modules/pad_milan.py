"""Golden cases of MILAN under PAD: the teachers, the prompting block, the whole pre-training."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, build_backbone, imported, nhwc
from tests.golden_modules.programs import compiled
from vadapt.backbones.teachers import Tower
from vadapt.backbones.vit import ViT
from vadapt.heads.milan_decoder import PromptingBlock, PromptingDecoder
from vadapt.nn.activations import gelu_quick
from vadapt.tasks.mae import random_masking
from vadapt.tasks.milan import MILAN, semantic_masking


class Holder(nnx.Module):
    """A stack of decoder blocks where the name table expects it."""

    def __init__(self, blocks: list[nnx.Module]):
        self.decoder = nnx.Module()
        self.decoder.blocks = nnx.List(blocks)


def prompting_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    removed, kept = inputs["x"].shape[1], inputs["fixed"].shape[1] - 1
    same(config, num_patches=kept + removed, len_keep=kept)
    block = PromptingBlock(
        config["dim"],
        config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )
    named = {f"decoder_blocks.0.{name}": value for name, value in params.items()}
    block = imported(Holder([block]), named).decoder.blocks[0]
    # `ids_restore` says where keys stand in raster order, which attention does not see.
    return {"y": block(inputs["x"], None, inputs["fixed"])}


def clip_teacher(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, act=("quick_gelu",))
    rngs = nnx.Rngs(0)
    backbone = ViT(
        width=config["width"],
        depth=config["layers"],
        num_heads=config["heads"],
        patch_size=config["patch_size"],
        image_size=config["resolution"],
        norm_epsilon=config["ln_eps"],
        patch_bias=False,
        first_norm=True,
        activation=gelu_quick,
        rngs=rngs,
    )
    tower = Tower(backbone, config["output_dim"], rngs=rngs)
    tower = imported(tower, {f"visual.{name}": value for name, value in params.items()})
    features, attention = tower(nhwc(inputs["imgs"]))
    return {"feat": features, "attn": attention}


def dino_teacher(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    rngs = nnx.Rngs(0)
    backbone = ViT(
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
        norm_epsilon=config["ln_eps"],
        rngs=rngs,
    )
    tower = imported(Tower(backbone, rngs=rngs), params)
    features, attention = tower(nhwc(inputs["imgs"]))
    return {"feat": features, "attn": attention}


def milan(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    rngs = nnx.Rngs(0)
    backbone = build_backbone(config, rngs)
    decoder = PromptingDecoder(
        config["embed_dim"],
        backbone.grid,
        config["target_dim"],
        width=config["decoder_embed_dim"],
        depth=config["decoder_depth"],
        num_heads=config["decoder_num_heads"],
        mlp_ratio=config["mlp_ratio"],
        norm_epsilon=config["ln_eps"],
        rngs=rngs,
    )
    model = imported(MILAN(backbone, decoder), params)
    images = nhwc(inputs["imgs"])
    taught, semantic = config["use_clip"], config["attn_mask"]
    # Without a teacher the original draws at random, whatever `attn_mask` says.
    if taught and semantic:
        importance = inputs["teacher_attn"][:, 0, 1:]
        gumbel = -jnp.log(inputs["exp_noise"])
        masking = semantic_masking(importance, gumbel, config["mask_ratio"])
    else:
        masking = random_masking(inputs["noise"], config["mask_ratio"])
    same(config, len_keep=masking.keep_ids.shape[1])
    latent, prediction = model(images, masking)
    loss = model.loss(
        images,
        prediction,
        masking.mask,
        norm_pixels=config["norm_pix_loss"],
        features=inputs["teacher_feat"] if taught else None,
    )
    return {
        "loss": loss,
        "pred": prediction if taught else prediction[:, 1:],
        "latent": latent,
        "mask": masking.mask,
        "ids_restore": masking.restore_ids,
        "ids_shuffle": jnp.argsort(masking.restore_ids, axis=1),
    }


MODULES = {
    "Block_fordecoder": prompting_block,
    "CLIP visual teacher": compiled(clip_teacher),
    "DINO ViT teacher": compiled(dino_teacher),
    "MILAN MaskedAutoencoderViT": milan,
}
