"""WebFace4M, IResNet-100: VPL in place of QAFace, all else as in configs/wf4m_r100.py.

Source:   as there; "Variational Prototype Learning for Deep Face Recognition", CVPR 2021, with its published
          implementation's λ = 0.15 and Δt = 200, started after 8,000 steps: here after 2 epochs (8,272 steps).
Command:  bash run.sh configs/wf4m_r100_vpl.py --set data.root=FOLDER
Cost:     as there, not run here.
Expected: the paper's Table 2 for VPL, trained elsewhere: IJB-B 95.56, IJB-C 96.76 (TAR@FAR=1e-4).
"""

from recognition.config import Config, derived


def config() -> Config:
    """The settings of wf4m_r100.py with another injection."""
    return derived(__file__, "wf4m_r100.py", "head.inject=vpl", "head.inject.start_epoch=2")
