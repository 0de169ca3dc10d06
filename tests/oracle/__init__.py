"""A stateless float64 model of DeepSeek-V4 in numpy: the judge of the C core. Recomputes everything, keeps no cache."""
