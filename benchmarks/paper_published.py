"""What the paper reports (Patke et al., SoCC '24, DOI 10.1145/3698038.3698523), read from its figures.

Fig. 10 and Fig. 13 print the same curve for QLM although workload and models differ, the bars of Fig. 11 and 14 are
multiples of ten without error bars, and the loads behind most figures are not stated in full; so these numbers are
for comparison of shapes, not of digits.
"""

from __future__ import annotations

CLASSES = {
    "interactive": {"ttft_s": 20, "weight": 4},
    "batch-1": {"ttft_s": 60, "weight": 2},
    "batch-2": {"ttft_s": 3600, "weight": 1},
}
"""What it promises (§8): first tokens, and no pace. Weights are ours."""

Points = dict[float, float]
Curves = dict[str, Points]

W_A_THROUGHPUT: Curves = {
    "shepherd": {0.5: 1.0},
    "fcfs": {0.5: 1.62},
    "edf": {0.5: 1.62},
    "qlm": {0.5: 1.68},
}
"""Fig. 9 at 0.5K requests/s, Vicuna-13B, SHEPHERD = 1."""

W_A_ATTAINMENT: Curves = {
    "qlm": {0.5: 95.0, 1: 87.0, 2: 54.0, 8: 13.9, 9: 13.4, 10: 12.4},
    "edf": {0.5: 74.6, 1: 68.4, 2: 45.6, 8: 11.0, 9: 9.2, 10: 9.4},
    "fcfs": {0.5: 10.0, 1: 10.0, 2: 10.3, 8: 9.5, 9: 9.4, 10: 8.3},
    "shepherd": {0.5: 9.5, 1: 10.2, 2: 10.5, 8: 9.7, 9: 10.0, 10: 9.9},
}
"""Fig. 10: % of SLOs met against interactive rate, thousands of requests/s."""

W_B_THROUGHPUT: Curves = {
    "qlm": {0.2: 4.91, 0.5: 4.91, 1.0: 4.91},
    "edf": {0.2: 2.48, 0.5: 1.80, 1.0: 1.16},
    "fcfs": {0.2: 2.48, 0.5: 1.80, 1.0: 1.16},
    "shepherd": {0.2: 1.84, 0.5: 1.44, 1.0: 1.0},
}
"""Fig. 12: against batch-1 rate, thousands of requests/s, SHEPHERD at 1 = 1."""

W_B_ATTAINMENT: Curves = {
    "qlm": {0.25: 95.0, 0.5: 87.0, 1: 54.0, 4: 13.9, 4.5: 13.4, 5: 12.4},
    "edf": {0.25: 55.1, 0.5: 37.4, 1: 20.8, 4: 5.2, 4.5: 4.7, 5: 4.4},
    "fcfs": {0.25: 9.6, 0.5: 9.3, 1: 9.0, 4: 5.2, 4.5: 4.7, 5: 4.4},
    "shepherd": {0.25: 9.2, 0.5: 9.5, 1: 9.2, 4: 5.2, 4.5: 4.7, 5: 4.4},
}
"""Fig. 13: % of SLOs met against batch-1 rate, thousands of requests/s."""

ABLATION = {
    "kv-swap": ((80, 80), (90, 80)),
    "eviction": ((100, 30), (100, 80)),
    "load-balancing": ((100, 90), (100, 90)),
    "warm-start": ((99, 99), (30, 50)),
}
"""Fig. 11 and 14: (throughput, SLOs met) on W_A and on W_B with one LSO removed, in % of QLM with all."""

HETEROGENEITY: Curves = {
    "qlm": {0: 100.0, 20: 100.0, 50: 100.0, 80: 100.0, 100: 100.0},
    "round-robin": {0: 100.0, 20: 29.3, 50: 38.5, 80: 61.2, 100: 100.0},
}
"""Fig. 15: % of SLOs met against the share of A10 in an A10 and A100 fleet."""

MEGA_PROMPTS: Curves = {
    "qlm": {0.4: 100.0, 0.8: 100.0, 2: 100.0, 4: 61.3},
    "round-robin": {0.4: 87.3, 0.8: 77.6, 2: 61.3, 4: 39.2},
}
"""Fig. 16: % of SLOs met against the rate of mega prompts, requests/s."""

QUEUE_GROWTH: Curves = {
    "qlm": {0: 100.0, 4: 97.5, 8: 95.1, 12: 94.1},
    "edf": {0: 100.0, 4: 83.1, 8: 72.6, 12: 72.2},
    "shepherd": {0: 100.0, 4: 22.9, 8: 18.4, 12: 14.4},
    "fcfs": {0: 100.0, 4: 26.2, 8: 12.5, 12: 8.6},
}
"""Fig. 17: % of SLOs met against the queue that is there at the start, thousands of requests."""

RWT_ACCURACY: Curves = {
    "Mistral-7B": {1: 0.456, 2: 0.458, 3: 0.797, 4: 0.897, 5: 0.943, 6: 0.963, 7: 0.972, 8: 0.976},
    "Vicuna-13B": {1: 0.047, 2: 0.705, 3: 0.878, 4: 0.940, 5: 0.969, 6: 0.982, 7: 0.989, 8: 0.992},
    "Llama-70B": {1: 0.344, 2: 0.761, 3: 0.860, 4: 0.897, 5: 0.908, 6: 0.915, 7: 0.914, 8: 0.915},
}
"""Fig. 18: R² against the number of request groups in the queue."""

GROUP_SIZE = {1: (1.0, 16.0), 2: (1.0, 8.0), 4: (1.04, 4.0), 8: (1.49, 2.0), 16: (1.64, 1.0)}
"""Fig. 19: δ against (performance degradation, scheduler overhead), both normalised."""

OVERHEAD_S = {10: 0.02, 25: 0.05, 100: 0.25, 400: 5.0}
"""Fig. 20: seconds to solve by number of groups, if a group holds 1,000 requests (A100, 7B)."""
