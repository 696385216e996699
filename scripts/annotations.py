"""Draws annotations as labels: python scripts/annotations.py /data/coco /data/coco_masks"""

from ann_jax.tools.annotations import main

if __name__ == '__main__':
    main()
