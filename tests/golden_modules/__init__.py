"""Builders of golden cases, one file a topic; see tests/parity.py."""

# Systems whose builders stand in a topic's file, by the names that golden files give them.
_PEFT = (
    *("AdaptFormer", "Adapter (Houlsby)", "Adapter (Pfeiffer)", "Conv-Adapter"),
    *("LoRA", "SSF", "SVF", "layer-wise lr decay", "schedule"),
)
TOPICS = {
    "UPerNet": "dense_zoo",
    "FRPT": "peft_frpt",
    "VPT": "peft_vpt",
    "tuning modes": "peft_modes",
    **dict.fromkeys(_PEFT, "peft_zoo"),
}
