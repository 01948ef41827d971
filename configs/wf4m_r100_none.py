"""WebFace4M, IResNet-100: the control of configs/wf4m_r100.py without injection.

Source:   as there. The paper's own run without injection is row Δt = 0 of its Table 3.
Command:  bash run.sh configs/wf4m_r100_none.py --set data.root=FOLDER
Cost:     as there, not run here.
Expected: LFW 99.71, CFP-FP 98.40, CPLFW 92.01, IJB-B 95.26, IJB-C 96.4 (that row; TAR@FAR=1e-4).
"""

from recognition.config import Config, derived


def config() -> Config:
    """The settings of wf4m_r100.py with another injection."""
    return derived(__file__, "wf4m_r100.py", "head.inject=none")
