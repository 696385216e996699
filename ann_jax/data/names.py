"""Names, colours and raw values of the datasets' classes, as their authors publish them.

CamVid: `label_colors.txt` of the original 32 classes, and the 11 of SegNet's split. Cityscapes: `labels.py`
of cityscapesScripts. ADE20K: the first synonym of each row of `objectInfo150.txt` of the scene-parsing
challenge. PASCAL Context: the 59 frequent classes in alphabetical order, after the background, and their
numbers among the 459. COCO-Stuff: `labels.txt` of its repository, without the 11 things that were never
drawn. NYU Depth V2: the 40 classes of Gupta et al. in their spelling. PASCAL VOC: the development
kit's order.
"""


def _names(text):
    return tuple(name.strip() for name in text.split(','))


def voc_colors(count, *, first=0):
    """Returns `count` distinct RGB triples of PASCAL VOC's colour map from index `first` (index 0 is black).

    The map spreads the bits of the index over the high bits of the three channels: bit 0 goes to red 128, bit
    1 to green 128, bit 2 to blue 128, bit 3 to red 64, and so on.
    """
    colors = []
    for index in range(first, first + count):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append(tuple(channels))
    return tuple(colors)


CAMVID_NAMES = _names(
    'Sky, Building, Pole, Road, Pavement, Tree, SignSymbol, Fence, Car, Pedestrian, Bicyclist'
)
CAMVID_COLORS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (0, 0, 192),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)

# (label id, name, category, colour) in train-id order; the other ids of 0..33 are not scored.
CITYSCAPES_CLASSES = (
    (7, 'road', 'flat', (128, 64, 128)),
    (8, 'sidewalk', 'flat', (244, 35, 232)),
    (11, 'building', 'construction', (70, 70, 70)),
    (12, 'wall', 'construction', (102, 102, 156)),
    (13, 'fence', 'construction', (190, 153, 153)),
    (17, 'pole', 'object', (153, 153, 153)),
    (19, 'traffic light', 'object', (250, 170, 30)),
    (20, 'traffic sign', 'object', (220, 220, 0)),
    (21, 'vegetation', 'nature', (107, 142, 35)),
    (22, 'terrain', 'nature', (152, 251, 152)),
    (23, 'sky', 'sky', (70, 130, 180)),
    (24, 'person', 'human', (220, 20, 60)),
    (25, 'rider', 'human', (255, 0, 0)),
    (26, 'car', 'vehicle', (0, 0, 142)),
    (27, 'truck', 'vehicle', (0, 0, 70)),
    (28, 'bus', 'vehicle', (0, 60, 100)),
    (31, 'train', 'vehicle', (0, 80, 100)),
    (32, 'motorcycle', 'vehicle', (0, 0, 230)),
    (33, 'bicycle', 'vehicle', (119, 11, 32)),
)

ADE20K_NAMES = _names(
    'wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, '
    'earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, '
    'mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, '
    'box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, '
    'grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, '
    'bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen '
    'island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, '
    'chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, '
    'bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, '
    'canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, '
    'cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, '
    'screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, '
    'plate, monitor, bulletin board, shower, radiator, glass, clock, flag'
)

PASCAL_CONTEXT_NAMES = _names(
    'background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, '
    'cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, '
    'food, grass, ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, '
    'pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, '
    'truck, tvmonitor, wall, water, window, wood'
)

# Number of each of the 59 classes among the 459 of the original files, also in alphabetical order.
PASCAL_CONTEXT_459 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115,
    144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349,
    354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

# Background is a class.
VOC_NAMES = _names(
    'background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, '
    'horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor'
)

NYUD_NAMES = _names(
    'wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, '
    'blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, '
    'refridgerator, television, paper, towel, shower curtain, box, whiteboard, person, night stand, '
    'toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop'
)

# Ids 1 .. 182 in order: things to 91, then stuff.
_COCO_182 = _names(
    'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire '
    'hydrant, street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, '
    'elephant, bear, zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, '
    'suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, '
    'surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, '
    'apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted '
    'plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, '
    'keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase, '
    'scissors, teddy bear, hair drier, toothbrush, hair brush, banner, blanket, branch, bridge, '
    'building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, '
    'clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, '
    'floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, '
    'furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, '
    'mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, '
    'platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, '
    'shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, '
    'tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, '
    'wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood'
)
# Planned things that the annotators never drew.
_COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
# (id, name) of the 171 classes that occur.
COCO_STUFF_CLASSES = tuple((raw, name) for raw, name in enumerate(_COCO_182, 1) if raw not in _COCO_UNUSED)

# The original classes without Void, which is black and not scored.
CAMVID32_CLASSES = (
    ('Animal', (64, 128, 64)),
    ('Archway', (192, 0, 128)),
    ('Bicyclist', (0, 128, 192)),
    ('Bridge', (0, 128, 64)),
    ('Building', (128, 0, 0)),
    ('Car', (64, 0, 128)),
    ('CartLuggagePram', (64, 0, 192)),
    ('Child', (192, 128, 64)),
    ('Column_Pole', (192, 192, 128)),
    ('Fence', (64, 64, 128)),
    ('LaneMkgsDriv', (128, 0, 192)),
    ('LaneMkgsNonDriv', (192, 0, 64)),
    ('Misc_Text', (128, 128, 64)),
    ('MotorcycleScooter', (192, 0, 192)),
    ('OtherMoving', (128, 64, 64)),
    ('ParkingBlock', (64, 192, 128)),
    ('Pedestrian', (64, 64, 0)),
    ('Road', (128, 64, 128)),
    ('RoadShoulder', (128, 128, 192)),
    ('Sidewalk', (0, 0, 192)),
    ('SignSymbol', (192, 128, 128)),
    ('Sky', (128, 128, 128)),
    ('SUVPickupTruck', (64, 128, 192)),
    ('TrafficCone', (0, 0, 64)),
    ('TrafficLight', (0, 64, 64)),
    ('Train', (192, 64, 128)),
    ('Tree', (128, 128, 0)),
    ('Truck_Bus', (192, 128, 192)),
    ('Tunnel', (64, 0, 64)),
    ('VegetationMisc', (192, 192, 0)),
    ('Wall', (64, 192, 0)),
)

# SegNet's split of the 701 images, which are named by their sequence and frame: (first, last) of each range.
CAMVID_SPLIT = {
    'train': (
        ('0001TP', '0001TP_008520'),
        ('0006R0', '0006R0_f99999'),
        ('0016E5', '0016E5_07958'),
        ('0016E5_08160', '0016E5_99999'),
    ),
    'val': (('0016E5_07959', '0016E5_08159'),),
    'test': (('0001TP_008521', '0001TP_999999'), ('Seq05VD', 'Seq05VD_f99999')),
}
