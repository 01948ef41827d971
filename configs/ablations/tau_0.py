"""WebFace4M, IResNet-100, QAFace with τ = 0 instead of 2.

Source:   QAFace (WACV 2023), Table 4, row τ = 0; its header says FAR = 1e-5, its figures are those of 1e-4.
Command:  bash run.sh configs/ablations/tau_0.py --set data.root=FOLDER
          bash run.sh configs/wf4m_r100.py configs/ablations/tau_*.py --set data.root=FOLDER   (the table)
Cost:     as configs/wf4m_r100.py, not run here.
Expected: LFW / CFP-FP / CPLFW / IJB-B / IJB-C 99.86 / 99.23 / 93.20 / 95.03 / 96.12 (TAR@FAR=1e-4 for IJB).
"""

from recognition.config import Config, derived


def config() -> Config:
    """The settings of wf4m_r100.py but for what is named here."""
    return derived(__file__, "../wf4m_r100.py", "head.inject.tau=0")
