"""Buildings, vehicles and what goes with them, written as strokes on a 100 by 100 square."""

from input_pipeline.sources.doodles.shapes import (
    Stroke,
    Vary,
    arc,
    blob,
    both,
    box,
    closed,
    cover,
    curve,
    dot,
    join,
    line,
    poly,
    puffs,
    ring,
    turn,
)


def house(v: Vary) -> list[Stroke]:
    left, right, eaves, top = v(12, 20), v(80, 88), v(42, 50), v(8, 16)
    strokes = []
    if v.maybe(.6):
        x = v(66, 72)
        strokes.append(box(x, top + 4, x + 10, eaves))
        if v.maybe(.5):
            strokes.append(curve(x + 5, top - 1, x + 10, top - 6, x + 4, top - 12, x + 10,
                                 top - 18))
    over = v(4, 9)
    if v.maybe(.75):
        roof = poly(left - over, eaves, v(46, 54), top, right + over, eaves)
    else:
        roof = poly(left - over, eaves, left + 12, top + 4, right - 12, top + 4, right + over,
                    eaves)
    strokes += [box(left, eaves, right, 92), cover(roof)]

    def window(x: float, y: float, r: float) -> list[Stroke]:
        return [box(x - r, y - r, x + r, y + r), line(x, y - r, x, y + r),
                line(x - r, y, x + r, y)]

    if v.maybe(.5):
        strokes += [box(43, 66, 57, 92), dot(54, 80, 1.4)]
        strokes += window(29, 62, 7) + window(71, 62, 7)
    else:
        door = v(22, 30)
        strokes += [box(door, 62, door + 16, 92), dot(door + 13, 78, 1.4)] + window(66, 66, 9)
    if v.maybe(.25):
        strokes.append(ring(50, (eaves + top) / 2 + 5, 5))
    return strokes


def bicycle(v: Vary) -> list[Stroke]:
    r = v(18, 21)
    y, back, front, crank = 68, 20, 82, (47, 70)
    seat, head = (38, v(36, 41)), (72, v(32, 38))
    strokes = [ring(back, y, r), ring(front, y, r)]
    if v.maybe(.45):
        for x in (back, front):
            strokes += [line(x - r, y, x + r, y), line(x, y - r, x, y + r)]
    else:
        strokes += [dot(back, y, 2), dot(front, y, 2)]
    strokes += [poly(back, y, *crank, *seat), line(*seat, *head, *crank),
                line(*seat, 36, 28), line(28, 28, 44, 27), line(front, y, *head, 70, 20),
                cover(ring(*crank, 4)), line(44, 77, 50, 63)]
    if v.maybe(.5):
        strokes.append(curve(70, 20, 78, 17, 84, 20, 82, 26))
    else:
        strokes.append(line(60, 17, 70, 20, 80, 18))
    if v.maybe(.25):
        strokes += [line(72, 32, 92, 32), line(74, 32, 77, 44, 90, 44, 92, 32)]
    return strokes


def car(v: Vary) -> list[Stroke]:
    roof, hood, a, b = v(26, 34), v(46, 52), v(30, 36), v(64, 70)
    body = closed(join(line(4, 74, 4, hood + 6), curve(4, hood + 6, 6, hood + 1, 18, hood),
                       line(a - 10, hood),
                       line(a, roof, b, roof, b + 12, hood),
                       curve(84, hood + 1, 94, hood + 4, 97, hood + 10),
                       line(97, 74)))
    strokes = [body]
    middle = (a + b) / 2
    strokes += [poly(a - 4, hood, a + 3, roof + 5, middle - 2, roof + 5, middle - 2, hood),
                poly(middle + 3, hood, middle + 3, roof + 5, b - 2, roof + 5, b + 6, hood)]
    r = v(9, 12)
    for x in (25, 75):
        strokes += [cover(ring(x, 74, r)), ring(x, 74, r * .4)]
    if v.maybe(.6):
        strokes.append(line(middle + 4, hood + 6, middle + 10, hood + 6))
    if v.maybe(.6):
        strokes.append(ring(93, hood + 10, 3.5))
    if v.maybe(.3):
        strokes.append(line(-2, 74 + r + 1, 102, 74 + r + 1))
    return strokes


def sailboat(v: Vary) -> list[Stroke]:
    mast, foot, bow = v(46, 52), v(64, 70), v(4, 10)
    strokes = [line(mast, foot + 4, mast, 4),
               poly(mast + 3, 10, mast + 3, foot - 2, v(80, 90), foot - 2)]
    if v.maybe(.8):
        strokes.append(poly(mast - 3, v(16, 24), mast - 3, foot - 2, v(16, 24), foot - 2))
    hull = closed(join(line(bow, foot + 4, 100 - bow, foot + 4),
                       curve(100 - bow, foot + 4, 84, foot + 18, 78, foot + 22),
                       line(24, foot + 22),
                       curve(24, foot + 22, 16, foot + 16, bow, foot + 4)))
    strokes.append(cover(hull))
    if v.maybe(.5):
        strokes.append(poly(mast, 4, mast - 12, 8, mast, 12))
    if v.maybe(.6):
        y = foot + 28
        strokes.append(curve(2, y, 12, y - 4, 22, y, 32, y + 4, 42, y, 52, y - 4, 62, y, 72, y + 4,
                             82, y, 92, y - 4, 100, y))
    if v.maybe(.3):
        strokes += [ring(x, foot + 13, 3) for x in (36, 50, 64)]
    return strokes


def airplane(v: Vary) -> list[Stroke]:
    thick = v(9, 12)
    tail, sweep = v(20, 28), v(0, 8)
    strokes = [line(56, 50 - thick * .5, 74 + sweep, 24, 82 + sweep, 24, 74, 50 - thick * .4)]
    body = closed(curve(2, 52, 10, 50 - thick * .7, 24, 50 - thick, 60, 50 - thick, 90,
                        48 - thick * .4,
                        98, 46, 88, 54, 62, 50 + thick, 24, 50 + thick, 8, 50 + thick * .7, 2, 52))
    strokes = [line(40, 50 - thick, 54 + sweep, 22, 63 + sweep, 22, 58, 50 - thick), cover(body),
               cover(poly(82, 50 - thick * .7, 92, tail, 100, tail, 96, 47)),
               cover(poly(38, 52, 60 + sweep, 84, 70 + sweep, 84, 58, 52))]
    strokes.append(curve(10, 50 - thick * .6, 16, 49, 22, 50 - thick))
    count = v.pick(3, 4, 5)
    strokes += [ring(30 + 8 * i, 50 - thick * .45, 1.9) for i in range(count)]
    if v.maybe(.5):
        strokes.append(cover(poly(86, 50, 96, 60, 101, 60, 96, 49)))
    return turn(strokes, v(-4, 14))


def train(v: Vary) -> list[Stroke]:
    top, cab = v(38, 44), v(16, 24)
    strokes = [poly(19, top, 15, top - 18, 35, top - 18, 31, top), box(8, top, 64, 74),
               cover(box(60, cab, 92, 74)), cover(box(54, cab - 5, 98, cab + 1)),
               box(68, cab + 11, 84, cab + 27), poly(8, 62, -6, 82, 8, 82)]
    r = v(9, 11)
    for x in (20, 45):
        strokes += [cover(ring(x, 82, r)), dot(x, 82, 1.8)]
    strokes += [cover(ring(77, 78, r + 5)), dot(77, 78, 1.8)]
    if v.maybe(.75):
        strokes.append(puffs(32, top - 30, 9, 6, 5, .3))
        if v.maybe(.6):
            strokes.append(puffs(52, top - 40, 12, 7, 6, .3))
    if v.maybe(.6):
        strokes.append(curve(42, top, 42, top - 9, 52, top - 9, 52, top))
    if v.maybe(.4):
        strokes.append(line(-8, 94, 104, 94))
    return strokes


def rocket(v: Vary) -> list[Stroke]:
    half, shoulder = v(14, 18), v(38, 44)
    strokes = both(line(50 - half * .9, 56, 50 - half - v(12, 16), 76, 50 - half - 10, 86,
                        50 - half * .7, 74))
    flame = closed(line(42, 80, 38, 88, 44, 87, 50, v(96, 102), 56, 87, 62, 88, 58, 80))
    if v.maybe(.85):
        strokes.append(flame)
    body = closed(curve(50, 2, 50 - half * .75, 20, 50 - half, shoulder, 50 - half, 60,
                        50 - half * .6, 79,
                        50 + half * .6, 79, 50 + half, 60, 50 + half, shoulder, 50 + half * .75,
                        20, 50, 2))
    strokes += [cover(body), ring(50, 42, v(6, 8))]
    if v.maybe(.5):
        strokes.append(ring(50, 42, 4))
    if v.maybe(.6):
        strokes.append(curve(50 - half * .72, 22, 50, 26, 50 + half * .72, 22))
    if v.maybe(.4):
        strokes.append(ring(50, 60, 4))
    else:
        strokes.append(line(50, 58, 50, 76))
    return turn(strokes, v.pick(0, 0, 25) + v(-5, 5))


def anchor(v: Vary) -> list[Stroke]:
    width, low = v(32, 38), v(90, 96)
    half = v(2.5, 4)
    shank = [line(50 - half, 24, 50 - half, low - 8), line(50 + half, 24, 50 + half, low - 8)]
    strokes = [ring(50, 14, v(8, 10)), *shank,
               cover(box(32, 31, 68, 31 + 2 * half)),
               cover(closed(curve(50 - width, 62, 50 - width * .7, 82, 50, low, 50 + width * .7,
                                  82, 50 + width, 62,
                                  50 + width * .6, 76, 50, low - 9, 50 - width * .6, 76,
                                  50 - width, 62)))]
    tip = cover(poly(50 - width - 6, 70, 50 - width + 1, 54, 50 - width + 11, 68))
    strokes += both(tip)
    if v.maybe(.35):
        strokes.append(curve(52, 8, 70, 6, 74, 24, 62, 46, 74, 64, 66, 74))
    return strokes


def guitar(v: Vary) -> list[Stroke]:
    waist, low, up = v(12, 15), v(24, 28), v(18, 21)
    body = blob(50, 42, 50 - up * .8, 44, 50 - up, 52, 50 - waist, 62, 50 - low, 74, 50 - low * .8,
                92,
                50, 98, 50 + low * .8, 92, 50 + low, 74, 50 + waist, 62, 50 + up, 52, 50 + up * .8,
                44)
    strokes = [body, cover(box(46.5, 4, 53.5, 56)), cover(ring(50, 63, v(6, 8))),
               line(42, 84, 58, 84),
               line(50, 6, 50, 84), cover(poly(45, -8, 55, -8, 54, 5, 46, 5))]
    if v.maybe(.6):
        strokes += [line(47, y, 53, y) for y in (14, 23, 32)]
    strokes += [line(45, y, 41, y) for y in (-5, 1)] + [line(55, y, 59, y) for y in (-5, 1)]
    return turn(strokes, v.pick(0, 30, 30, 40) + v(-6, 6))


def bell(v: Vary) -> list[Stroke]:
    rim, shoulder = v(36, 42), v(19, 23)
    strokes = [ring(50, 88, 8), ring(50, 9, 6)]
    body = closed(curve(50 - rim, 84, 50 - shoulder - 4, 68, 50 - shoulder, 40, 50 - shoulder * .6,
                        22, 50, 16,
                        50 + shoulder * .6, 22, 50 + shoulder, 40, 50 + shoulder + 4, 68, 50 + rim,
                        84))
    strokes.append(cover(body))
    if v.maybe(.6):
        strokes.append(curve(50 - shoulder - 6, 72, 50, 76, 50 + shoulder + 6, 72))
    if v.maybe(.5):
        cx, cy, r = v.pick((30, 40, 24), (26, 60, 20))
        strokes += both(arc(cx, cy, r, r, 162, 215))
    if v.maybe(.3):
        strokes += both(closed(curve(50, 13, 36, 2, 30, 12, 50, 15)))
    return strokes


def ladder(v: Vary) -> list[Stroke]:
    low, high, rungs = v(17, 21), v(12, 16), v.pick(5, 6, 7)
    strokes = [line(50 - low, 98, 50 - high, 2), line(50 + low, 98, 50 + high, 2)]
    thick = v.maybe(.4)
    for i in range(rungs):
        t = (i + .6) / rungs
        half, y = low + (high - low) * t, 98 - 96 * t
        strokes.append(line(50 - half, y, 50 + half, y))
        if thick:
            strokes.append(line(50 - half, y - 4, 50 + half, y - 4))
    return turn(strokes, v(-16, 16))


def umbrella(v: Vary) -> list[Stroke]:
    high, folds = v(40, 48), v.pick(3, 4, 5)
    wide, rim = 44, 54
    shaft = line(50, rim - 6, 50, 84)
    hook = arc(57, 84, 7, 9, 180, v(20, 0))
    step = 2 * wide / folds
    hem = [arc(50 + wide - step * (i + .5), rim, step / 2, 6, 0, -180) for i in range(folds)]
    strokes = [join(shaft, hook), cover(closed(join(arc(50, rim, wide, high, 180, 360), *hem))),
               line(50, rim - high, 50, rim - high - 8)]
    for i in range(1, folds):
        x = 50 - wide + step * i
        strokes.append(curve(50, rim - high, 50 + (x - 50) * .75, rim - high * .6, x, rim))
    if v.maybe(.2):
        strokes += [line(x, y, x - 2, y + 8) for x, y in ((4, 8), (14, -2), (92, 4), (84, -4))]
    return strokes


FIGURES = {
    'house': house, 'bicycle': bicycle, 'car': car, 'sailboat': sailboat, 'airplane': airplane,
    'train': train, 'rocket': rocket, 'anchor': anchor, 'guitar': guitar, 'bell': bell,
    'ladder': ladder, 'umbrella': umbrella,
}
