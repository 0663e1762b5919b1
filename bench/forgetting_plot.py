#!/usr/bin/env python3
"""The tables and the picture of docs/forgetting.md from what `temper bench forgetting` wrote.

    python3 bench/forgetting_plot.py runs/forgetting/summary.json docs/forgetting.svg

Takes summary.json or results.json, and as many tasks as it has. Prints Markdown tables to stdout, arms that need old data apart
from those that do not; writes the plane "learned against kept". Standard library only.
learned: mean over tasks of the score right after learning them, over tasks scored by exact recall.
kept: recall of the old people's facts after the last task. Bars: the range over seeds, orders averaged."""
import html
import json
import statistics
import sys


def mean(values):
    values = [v for v in values if v is not None]
    return statistics.mean(values) if values else None


def seeds_of(results, arm):
    """[{learned, last: by the file's tasks, probes}], a seed each, means over orders."""
    if "seeds" in arm:
        return arm["seeds"]
    names, T = [t["name"] for t in results["tasks"]], len(results["tasks"])
    by_seed = {}
    for chain in arm["chains"]:
        order = [names.index(n) for n in results["orders"][chain["order"] - 1]]
        place = [order.index(t) for t in range(T)]
        by_seed.setdefault(chain["seed"], []).append((
            [chain["R"][place[t] + 1][place[t]] for t in range(T)], [chain["R"][T][place[t]] for t in range(T)], chain["P"][T]))
    return [dict(zip(("learned", "last", "probes"), ([mean(column) for column in zip(*part)] for part in zip(*chains))))
            for chains in by_seed.values()]


def figures(results):
    exact = [i for i, t in enumerate(results["tasks"]) if t["metric"] == "exact"]
    others = [i for i in range(len(results["tasks"])) if i not in exact]
    probe = {p["name"]: i for i, p in enumerate(results["probes"])}
    for arm in results["arms"]:
        rows = []
        for seed in seeds_of(results, arm):
            last, learned = seed["last"], seed.get("learned")
            if learned is None or None in learned:
                learned = last
            rows.append({
                "learned": mean(learned[t] for t in exact),
                "still": mean(last[t] for t in exact),
                "other": mean(last[t] for t in others) if others else float("nan"),
                "people": seed["probes"][probe["old-people"]],
                "prose": seed["probes"][probe["old-prose"]],
                "tasks": list(zip(learned, last)),
            })
        yield arm, {k: [r[k] for r in rows] for k in rows[0]}


def cell(values):
    text = "%.3f" % statistics.mean(values)
    return text + " (%.3f to %.3f)" % (min(values), max(values)) if len(values) > 1 else text


GROUPS = (("Ends", lambda arm: arm["kind"] != "sequence"),
          ("Without old data", lambda arm: arm["kind"] == "sequence" and not arm["old_data"]),
          ("With old data", lambda arm: arm["kind"] == "sequence" and arm["old_data"]))


def grouped(results, head, row):
    """A table of all arms, the groups one below the other."""
    print("\n| %s |\n|%s" % (" | ".join(head), "---|" * len(head)))
    arms = list(figures(results))
    for title, belongs in GROUPS:
        of_group = [row(arm, f) for arm, f in arms if belongs(arm)]
        if of_group:
            print("| **%s** |%s" % (title, " |" * (len(head) - 1)))
        for cells in of_group:
            print("| %s |" % " | ".join(cells))


def table(results):
    """What was learned of new facts and what was kept, the least and the most of the seeds."""
    grouped(results, ("arm", "new facts when learned", "new facts at the end", "other tasks at the end", "old people", "old prose"),
            lambda arm, f: (arm["name"], "" if arm["kind"] != "sequence" else cell(f["learned"]), cell(f["still"]), cell(f["other"]), cell(f["people"]), cell(f["prose"])))


def by_task(results):
    """What was learned of every task, and what is left of it at the end."""
    def row(arm, f):
        cells = [arm["name"]]
        for t in range(len(results["tasks"])):
            learned, last = (statistics.mean(seed[t][k] for seed in f["tasks"]) for k in (0, 1))
            cells.append("%.3f -> %.3f" % (learned, last) if arm["kind"] == "sequence" else "%.3f" % last)
        return cells
    grouped(results, ["arm"] + [t["name"] for t in results["tasks"]], row)


def interval(summary, name):
    s = summary.get(name) or {}
    if s.get("mean") is None:
        return ""
    return "%.3f" % s["mean"] + (" ± %.3f" % (s["high"] - s["mean"]) if s.get("high") is not None else "")


def against(arm, name):
    d = arm["against_baseline"].get(name)
    if not d or d.get("difference") is None:
        return ""
    p = d["p_holm"]
    return "%+.3f, %s" % (d["difference"], "< 0.001" if p < 0.001 else "%.3f" % p)


def searched(results):
    """What was chosen on validation rows and what came of it on test rows: means ± 95 % over seeds, orders averaged; differences
    from the baseline in pairs of seeds, with p by Holm. *: no arm of its group learns more and forgets less."""
    def row(arm, f):
        chosen = [c for c in arm.get("configurations", []) if c["chosen"]] or [None]
        s, settings = arm["summary"], ", ".join(k.replace("train.", "").replace("keep.", "") for k in chosen[0]["settings"]) if chosen[0] else ""
        sequence = arm["kind"] == "sequence"
        return (arm["name"] + (" *" if sequence and arm["front_alike"] else ""), settings, "%.3f" % chosen[0]["average"] if chosen[0] else "", interval(s, "average"),
                interval(s, "learned") if sequence else "", interval(s, "forgetting") if sequence else "", interval(s, "held"), against(arm, "average"), against(arm, "held"),
                "%.3f" % arm["matched_forgetting"] if arm.get("matched_forgetting") is not None else "")
    grouped(results, ("arm", "chosen", "on validation rows", "average at the end", "when learned", "forgetting", "old probes", "average, against %s" % results["baseline"],
                      "old probes, against %s" % results["baseline"], "forgetting at a score of %.3f" % results["matched_learned"] if results.get("matched_learned") is not None else "matched"), row)


def diverged(results):
    """Arms with trainings that diverged; their chains are in the means above with the models from before."""
    for arm in results["arms"]:
        chains = len(results["seeds"]) * (len(results["orders"]) if arm["kind"] == "sequence" else 1)
        if arm.get("diverged"):
            print("\n%s: training diverged in %d of %d chains." % (arm["name"], arm["diverged"], chains))


def place(mx, my, width, taken, frame):
    """Where a name stands: beside its dot, or as near as nothing is in the way, inside the frame."""
    for shift in range(0, 400, 6):
        for up in (-shift, shift):
            for left in (mx + 8 + shift / 3, mx - 8 - shift / 3 - width):
                box = (left, my - 6 + up, left + width, my + 6 + up)
                inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
                if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                    return box
    return (mx + 8, my - 6, mx + 8 + width, my + 6)


def picture(results, path):
    W, H, L, B = 760, 560, 60, 50
    x = lambda v: L + v * (W - L - 130)
    y = lambda v: H - B - v * (H - B - 20)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">' % (W, H),
           '<rect width="100%" height="100%" fill="#fff"/>']
    for i in range(6):
        v = i / 5
        out.append('<path d="M%.0f %.0fH%.0fM%.0f %.0fV%.0f" stroke="#ddd"/>' % (x(0), y(v), x(1), x(v), y(0), y(1)))
        out.append('<text x="%.0f" y="%.0f" text-anchor="end">%.1f</text><text x="%.0f" y="%.0f" text-anchor="middle">%.1f</text>' % (x(0) - 6, y(v) + 4, v, x(v), y(0) + 16, v))
    out.append('<text x="%.0f" y="%.0f" text-anchor="middle">recall of new facts, right after learning them</text>' % (x(0.5), H - 10))
    out.append('<text transform="translate(16 %.0f) rotate(-90)" text-anchor="middle">recall of old people, at the end</text>' % y(0.5))
    names, dots = [], []
    for arm, f in sorted(figures(results), key=lambda p: -statistics.mean(p[1]["people"])):
        xs, ys = f["learned" if arm["kind"] == "sequence" else "still"], f["people"]
        mx, my = x(statistics.mean(xs)), y(statistics.mean(ys))
        color = "#c40" if arm["old_data"] else "#06c" if arm["kind"] == "sequence" else "#444"
        out.append('<path d="M%.1f %.1fH%.1fM%.1f %.1fV%.1f" stroke="%s" stroke-opacity=".4"/>' % (x(min(xs)), my, x(max(xs)), mx, y(min(ys)), y(max(ys)), color))
        out.append('<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>' % (mx, my, color))
        names.append((mx, my, color, arm["name"]))
        dots.append((mx - 4, my - 4, mx + 4, my + 4))
    taken = list(dots)
    for mx, my, color, name in names:
        box = place(mx, my, 6.4 * len(name), taken, (x(0), 4, W, y(0)))
        taken.append(box)
        if abs(box[1] + 6 - my) > 8:
            out.append('<path d="M%.1f %.1fL%.1f %.1f" stroke="%s" stroke-opacity=".5"/>' % (mx, my, box[0] if box[0] > mx else box[2], box[1] + 6, color))
        out.append('<text x="%.1f" y="%.1f" fill="%s">%s</text>' % (box[0], box[1] + 10, color, html.escape(name)))
    out.append("</svg>")
    open(path, "w").write("\n".join(out) + "\n")


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        read = json.load(file)
    if any(len(arm.get("configurations", [])) > 1 for arm in read["arms"]):
        searched(read)
    table(read)
    if len(read["tasks"]) > 2:
        by_task(read)
    diverged(read)
    if len(sys.argv) > 2:
        picture(read, sys.argv[2])
