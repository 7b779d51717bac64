"""Guesses: the query of the next layer, one layer early.

A layer changes the hidden state little, so the next layer's own norm and projection, applied to what
this layer starts from, come close to the query that the next layer will ask with. While this layer
computes, the daemon moves what that query would read; the confirmation moves what it missed.
"""
from __future__ import annotations

import statistics
import sys
from typing import Any, Optional

import numpy as np
import torch


class NextQuery:
    """Queries of the layers of one decoder (Llama-family) from a hidden state.

    Thread  the engine's.
    """

    def __init__(self, decoder: Any) -> None:
        self._layers = list(decoder.layers)
        self._checked: Optional[bool] = None

    def of(self, layer: int, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[1, query heads, tokens, dim] after RoPE, as if `layer` started from `hidden` [1, tokens,
        width]. rotary: cos and sin [1, tokens, dim] of the tokens' positions."""
        attention = self._layers[layer].self_attn
        normed = self._layers[layer].input_layernorm(hidden)
        query = attention.q_proj(normed).view(*normed.shape[:-1], -1, attention.head_dim)
        norm = getattr(attention, "q_norm", None)
        if norm is not None:
            query = norm(query)
        query = query.transpose(1, 2)
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        return rotate(query, query, *rotary)[0]

    def fits(self, layer: int, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor],
             query: torch.Tensor) -> bool:
        """Whether this is how the model makes its queries: from its own input a layer's has to come
        out. Looked at once."""
        if self._checked is None:
            try:
                made = self.of(layer, hidden, rotary)
                self._checked = made.shape == query.shape and torch.allclose(
                    made.float(), query.float(), rtol=1e-3, atol=1e-3)
            except (AttributeError, TypeError, RuntimeError):
                self._checked = False
        return self._checked


class Trial:
    """Whether guesses pay, by trying: `TRIED` steps without, as many with, then `KEPT` steps of what
    was faster, and again. What is read is the same either way."""

    TRIED = 8
    KEPT = 256

    def __init__(self) -> None:
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self._kept = 0
        self.guesses = False  # in the next step

    def step(self, seconds: float) -> None:
        """One step as `guesses` said took so long."""
        if self._kept > 0:
            self._kept -= 1
            if self._kept == 0:
                self._seconds = ([], [])
                self.guesses = False
            return
        of = self._seconds[self.guesses]
        of.append(seconds)
        if len(of) < self.TRIED:
            return
        if not self.guesses:
            self.guesses = True
            return
        without, with_guesses = (statistics.median(each) for each in self._seconds)
        self.guesses = with_guesses < without
        self._kept = self.KEPT


class Guesser:
    """The guesses of one conversation: what a layer starts from, and whether to guess from it.

    always  guess at every step, else by Trial.
    Thread  the engine's.
    """

    def __init__(self, queries: NextQuery, always: bool) -> None:
        self._queries = queries
        self._always = always
        self._trial = Trial()
        self._from: Optional[tuple[int, torch.Tensor, tuple]] = None

    @property
    def on(self) -> bool:
        return self._always or self._trial.guesses

    def layer_begins(self, layer: int, hidden: torch.Tensor, rotary: tuple) -> None:
        self._from = (layer, hidden, rotary)

    def next_query(self, layer: int, query: torch.Tensor) -> Optional[np.ndarray]:
        """Of the layer behind `layer`, which asks with `query` itself; None: no guess."""
        began, self._from = self._from, None
        if began is None or began[0] != layer or not self.on:
            return None
        _, hidden, rotary = began
        if not self._queries.fits(layer, hidden, rotary, query):
            if self._always:
                raise NotImplementedError("skv.hf: the queries of this model are not its layers' norm, q_proj "
                                          "and rotation; open it with Read(guess=False)")
            return None
        return self._queries.of(layer + 1, hidden, rotary)[0, :, 0].to(torch.float32).contiguous().numpy()

    def step(self, seconds: float) -> None:
        if not self._always:
            self._trial.step(seconds)
