"""skv.hf: an engine on transformers 5.x (Llama-family, CPU, batch 1) whose KV lives in skvd.

Start with Engine (engine.py). A prompt is computed densely and its sentences are stored as they
come; a decoding step attends only the blocks that skvd ranked for its query, read in place from the
window's slots, and the open tail from the engine's own memory.
"""
from .attention import attend_one
from .cache import LostKv, SentenceCache
from .engine import Conversation, Engine, FeedReport, describe, geometry_of, weights_id
from .read import Read, WindowPlan
from .record import Step, Steps
from .sentences import SentenceEnds

__all__ = ["Conversation", "Engine", "FeedReport", "LostKv", "Read", "SentenceCache", "SentenceEnds",
           "Step", "Steps", "WindowPlan", "attend_one", "describe", "geometry_of", "weights_id"]
