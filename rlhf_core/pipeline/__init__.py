"""Pipelines: runs one after the other, each stage's model feeding later stages by name.

    model: Qwen/Qwen3-8B        # keys beside `stages` hold for every stage whose method knows them
    stages:
      sft: {data: conversations.jsonl}                     # the method, where it is not the stage's name: method: sft
      reward_model: {model: sft, data: pairs.jsonl}        # the name of an earlier stage stands for its model
      ppo: {model: sft, reward_model: reward_model, data: prompts.jsonl}

Every stage is an `rlhf run` in a process of its own, so its memory is free before the next begins. A stage's folder
holds stage.yaml, what it was started with, and stage.json, its fingerprint and whether it is finished.
"""
