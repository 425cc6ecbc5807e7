"""Agents behind one interface: DreamerV3 (`dreamer.py`) and SAC (`sac.py`), and `check.py` which proves both learn."""
