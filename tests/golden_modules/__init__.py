"""Builders of golden cases, one file a topic; see tests/parity.py."""

# Systems whose builders stand in a topic's file, by the names that golden files give them.
TOPICS = {"UPerNet": "dense_zoo", **dict.fromkeys(("LoRA", "SSF", "SVF"), "peft_zoo")}
