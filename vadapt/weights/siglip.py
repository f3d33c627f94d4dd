"""Names of SigLIP's visual tower in Hugging Face's files.

Its pooling head and the text tower find no place: what features come from is the trunk.
"""

from vadapt.weights.clip import VISION, hugging_face_block_rules
from vadapt.weights.tables import Rule, Table, norm

SIGLIP_HF = Table(
    family="siglip_hf",
    backbone=(
        Rule(VISION + r"embeddings\.position_embedding\.weight", "pos_embed"),
        Rule(VISION + r"embeddings\.patch_embedding\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(VISION + r"embeddings\.patch_embedding\.bias", "patch_embed/proj/bias"),
        *hugging_face_block_rules(),
        *norm(VISION + r"post_layernorm", "norm"),
    ),
    unused=VISION + r"head\..*|" + VISION + r"embeddings\.position_ids"
    r"|text_model\..*|logit_scale|logit_bias",
)
