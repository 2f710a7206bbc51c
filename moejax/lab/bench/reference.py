"""The routed feed-forward and its gradients in float64, one expert at a time, by NumPy.

Large layers are checked on samples. Each sample is an exact part of the whole: some tokens with all
of their experts, or some hidden units of every expert with all of its rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.moe.experts import strip_dimensions


@dataclass(frozen=True)
class Case:
    """A bank of SwiGLU experts, its input, and the gradient of its output, in any float type."""

    params: dict[str, np.ndarray]
    """``w_gate_EDF``, ``w_up_EDF``, ``w_down_EFD``."""
    x_TD: np.ndarray
    expert_TK: np.ndarray
    weight_TK: np.ndarray
    dy_TD: np.ndarray

    def matrices(self, expert: int, units: slice | np.ndarray = slice(None)) -> tuple:
        """``w_gate_DF``, ``w_up_DF``, ``w_down_FD`` of one expert, for these hidden units."""
        parts: dict[str, Any] = strip_dimensions(dict[str, Any](self.params))
        columns = (parts[name][expert][:, units] for name in ("w_gate", "w_up"))
        down_FD = parts["w_down"][expert][units]
        return *(c.astype(np.float64) for c in columns), down_FD.astype(np.float64)

    def rows(self, expert: int, token_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these tokens chose an expert: places in ``token_T``, and which choice it was."""
        place, choice = np.nonzero(self.expert_TK[token_T] == expert)
        return place, choice


def differentiate_tokens(case: Case, token_T: np.ndarray) -> dict[str, np.ndarray]:
    """``y``, ``dx`` and ``dweight`` of these tokens."""
    x_TD, dy_TD = (a[token_T].astype(np.float64) for a in (case.x_TD, case.dy_TD))
    weight_TK = case.weight_TK[token_T].astype(np.float64)
    y_TD, dx_TD, dweight_TK = (np.zeros_like(a) for a in (x_TD, x_TD, weight_TK))
    for expert in np.unique(case.expert_TK[token_T]):
        gate_DF, up_DF, down_FD = case.matrices(expert)
        at_R, k_R = case.rows(expert, token_T)
        weight_R1 = weight_TK[at_R, k_R][:, None]
        h_RF, slopes = hidden(x_TD[at_R], gate_DF, up_DF)
        out_RD = h_RF @ down_FD
        y_TD[at_R] += weight_R1 * out_RD
        dweight_TK[at_R, k_R] = (out_RD * dy_TD[at_R]).sum(-1)
        dh_RF = (weight_R1 * dy_TD[at_R]) @ down_FD.T
        dx_TD[at_R] += (dh_RF * slopes[0]) @ gate_DF.T + (dh_RF * slopes[1]) @ up_DF.T
    return {"y": y_TD, "dx": dx_TD, "dweight": dweight_TK}


def differentiate_units(case: Case, expert: int, unit_F: np.ndarray) -> dict[str, np.ndarray]:
    """``dw_gate``, ``dw_up`` [D, F] and ``dw_down`` [F, D] of these hidden units of an expert."""
    gate_DF, up_DF, down_FD = case.matrices(expert, unit_F)
    token_R, k_R = case.rows(expert, np.arange(len(case.x_TD)))
    x_RD = case.x_TD[token_R].astype(np.float64)
    weight_R1 = case.weight_TK[token_R, k_R].astype(np.float64)[:, None]
    dy_RD = weight_R1 * case.dy_TD[token_R].astype(np.float64)
    h_RF, slopes = hidden(x_RD, gate_DF, up_DF)
    dh_RF = dy_RD @ down_FD.T
    dgate_DF, dup_DF = (x_RD.T @ (dh_RF * slope_RF) for slope_RF in slopes)
    return {"dw_gate": dgate_DF, "dw_up": dup_DF, "dw_down": h_RF.T @ dy_RD}


def hidden(
    x_RD: np.ndarray, gate_DF: np.ndarray, up_DF: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """``h_RF = silu(x W_gate) * (x W_up)``, and its derivatives by the two products."""
    a_RF, u_RF = x_RD @ gate_DF, x_RD @ up_DF
    s_RF = 0.5 + 0.5 * np.tanh(0.5 * a_RF)  # the sigmoid, without overflow
    return a_RF * s_RF * u_RF, (u_RF * s_RF * (1 + a_RF * (1 - s_RF)), a_RF * s_RF)
