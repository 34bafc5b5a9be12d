"""Steps of many jobs at once: the arithmetic of diffusers' schedulers over rows.

One `scheduler.step` with guidance costs 0.3 to 0.75 ms, nearly all of it Python and tensors of a
single number, and a batch of sixteen pays it sixteen times. Here every number that depends on the
step alone is computed once for all jobs of equal settings, by the scheduler's own operations in its
own order; what is left are a few operations over all rows. Products, quotients and sums of float32
round number by number, whether the other operand is one number or one for each row, so that the
bits are diffusers'. Schedulers and settings that are not known here step job by job, as diffusers
has it.

| file | schedulers |
|---|---|
| `by_alphas.py` | DDIM, DDPM, PNDM |
| `by_sigmas.py` | Euler, ancestral Euler, Heun, LMS |
| `dpm_solver.py` | DPM-Solver++ |
| `uni_pc.py` | UniPC |
| `flow.py` | Euler and Heun of flow matching |
"""
