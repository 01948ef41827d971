"""WebFace4M, IResNet-100, QAFace with crops at p = 0.2 and down-sampling at p = 0.0 instead of 0.2 each.

Source:   QAFace (WACV 2023), Table 5, row crop 0.2, down-sampling 0.0.
Command:  bash run.sh configs/ablations/augment_crop2_down0.py --set data.root=FOLDER
          bash run.sh configs/wf4m_r100.py configs/ablations/augment_*.py --set data.root=FOLDER   (the table)
Cost:     as configs/wf4m_r100.py, not run here.
Expected: IJB-B / IJB-C 95.45 / 96.67 (TAR@FAR=1e-4 for IJB).
"""

from recognition.config import Config, derived


def config() -> Config:
    """The settings of wf4m_r100.py but for what is named here."""
    return derived(__file__, "../wf4m_r100.py", "data.augmentation.crop=0.2", "data.augmentation.downsample=0.0")
