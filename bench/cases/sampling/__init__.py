"""Sampling: whole loops, native, against the loops that users write around PyTorch's modules.

A file per model. Each has the model as a step program, and as the loop that an informed user would write: what earlier
positions computed is kept, one step computes what is new. Before anything is timed the two are given the same uniform
numbers, and have to draw the same symbols; what is timed draws freely, so its results cannot be compared.
"""

from fastar.bench.cases.sampling import char_rnn, made, nade, pixelcnn, transformer, wavenet

CASES = (*nade.CASES, *made.CASES, *char_rnn.CASES, *wavenet.CASES, *pixelcnn.CASES, *transformer.CASES)
