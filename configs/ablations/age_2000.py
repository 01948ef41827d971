"""WebFace4M, IResNet-100, QAFace with Δt = 2000 steps instead of 1000.

Source:   QAFace (WACV 2023), Table 3, row Δt = 2000.
Command:  bash run.sh configs/ablations/age_2000.py --set data.root=FOLDER
          bash run.sh configs/wf4m_r100.py configs/ablations/age_*.py --set data.root=FOLDER   (the table)
Cost:     as configs/wf4m_r100.py, not run here.
Expected: LFW / CFP-FP / CPLFW / IJB-B / IJB-C 99.69 / 98.33 / 92.95 / 95.14 / 96.35 (TAR@FAR=1e-4 for IJB).
"""

from recognition.config import Config, derived


def config() -> Config:
    """The settings of wf4m_r100.py but for what is named here."""
    return derived(__file__, "../wf4m_r100.py", "head.inject.max_age=2000")
