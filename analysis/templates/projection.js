// --- the plot: time of an image against memory, latency or energy, both logarithmic -----------------------------------
const data = JSON.parse(document.getElementById("data").textContent);

function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const lead of high / low > 1000 ? [1] : high / low > 8 ? [1, 2, 5] : [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8]) found.push(+(lead * 10 ** power).toPrecision(12));
  return found.filter((value) => value >= low && value <= high);
}

function draw(box) {
  const choice = Object.fromEntries([...box.querySelectorAll("select")].map((select) => [select.name, select.value]));
  const rows = data.points.filter((row) => row.model === choice.model && (!choice.device || row.device === choice.device) && row[choice.axis] != null);
  const fitting = (units, values) => units[Math.max(...values) >= 0.1 * units[0][1] ? 0 : 1];
  const [unit, one] = fitting(data.axes[choice.axis].units, rows.map((row) => row[choice.axis]));
  const [second, part] = fitting([["seconds", 1], ["milliseconds", 1e-3]], rows.map((row) => row.time));
  const axis = { name: data.axes[choice.axis].name, unit, time: `${second} per image` };
  const points = rows.map((row) => ({ row, x: row[choice.axis] / one, y: row.time / part }));
  const svg = box.querySelector("svg");
  svg.replaceChildren();
  box.querySelector(".answer").replaceChildren();
  if (!points.length) {
    svg.append(make("text", { x: W / 2, y: H / 2, "text-anchor": "middle" }, "nothing known here"));
    return;
  }
  const spread = (values) => [Math.min(...values) / 1.25, Math.max(...values) * 1.25];
  const [left, right] = spread(points.map((p) => p.x)), [low, high] = spread(points.map((p) => p.y));
  const px = (x) => LEFT + (Math.log(x / left) / Math.log(right / left)) * (W - LEFT - RIGHT);
  const py = (y) => H - BOTTOM - (Math.log(y / low) / Math.log(high / low)) * (H - TOP - BOTTOM);
  for (const tick of decades(left, right)) {
    svg.append(make("line", { x1: px(tick), x2: px(tick), y1: TOP, y2: H - BOTTOM, class: "rule" }));
    svg.append(make("text", { x: px(tick), y: H - BOTTOM + 17, "text-anchor": "middle" }, short(tick)));
  }
  for (const tick of decades(low, high)) {
    svg.append(make("line", { x1: LEFT, x2: W - RIGHT, y1: py(tick), y2: py(tick), class: "rule" }));
    svg.append(make("text", { x: LEFT - 7, y: py(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  svg.append(make("text", { x: (LEFT + W - RIGHT) / 2, y: H - 8, "text-anchor": "middle" }, `${axis.name}, ${axis.unit} (projected)`));
  svg.append(make("text", { x: 14, y: (TOP + H - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(TOP + H - BOTTOM) / 2})` }, `${axis.time} (projected)`));
  const front = [];
  const line_of = points.filter((p) => !p.row.bounds); // bounds are not compared with estimates
  for (const p of [...(line_of.length ? line_of : points)].sort((a, b) => a.x - b.x || a.y - b.y)) if (!front.length || p.y < front.at(-1).y) front.push(p);
  svg.append(make("polyline", { points: front.map((p) => `${px(p.x)},${py(p.y)}`).join(" "), class: "front" }));
  const names = [...new Set(points.map((p) => p.row.device))];
  const taken = [], line = svg.clientWidth < 600 ? 22 : 14; // letters keep their size when the plot shrinks
  for (const p of points) {
    const whole = `${p.row.scheme}, ${p.row.device}, batch ${p.row.batch}, ${p.row.mode}`;
    const mark = make("g", { tabindex: 0, role: "button", class: "mark", "aria-label": whole });
    const beaten = !front.includes(p), colour = COLOURS[names.indexOf(p.row.device) % COLOURS.length];
    mark.append(make("circle", { cx: px(p.x), cy: py(p.y), r: 12, class: "reach" }));
    mark.append(make("circle", { cx: px(p.x), cy: py(p.y), r: beaten ? 4 : 6, fill: p.row.bounds ? "white" : colour, "fill-opacity": beaten ? 0.45 : 1, stroke: p.row.bounds ? colour : "white", "stroke-width": 1.2 }));
    if (!beaten && !taken.some((other) => Math.abs(other.x - px(p.x)) < 14 * line && Math.abs(other.y - py(p.y)) < line)) {
      const flip = px(p.x) > W - 200;
      taken.push({ x: px(p.x), y: py(p.y) });
      mark.append(make("text", { x: px(p.x) + (flip ? -10 : 10), y: py(p.y) + (flip ? 18 : -7), "text-anchor": flip ? "end" : "start", class: "name" }, choice.device ? `${p.row.scheme}, batch ${p.row.batch}, ${p.row.mode}` : `${p.row.scheme}, ${p.row.device}`));
    }
    for (const event of ["pointerenter", "focus", "click"]) mark.addEventListener(event, () => tell(box, p, whole, axis));
    svg.append(mark);
  }
  tell(box, front.at(-1), `${front.at(-1).row.scheme}, ${front.at(-1).row.device}, batch ${front.at(-1).row.batch}, ${front.at(-1).row.mode}`, axis);
}

function tell(box, p, whole, axis) {
  const title = document.createElement("h3"), list = document.createElement("dl");
  title.textContent = whole;
  const line = (name, text) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = text;
    list.append(dt, dd);
  };
  line(axis.time, p.row.bounds ? `at least ${short(p.y)}, a lower bound` : `${short(p.y)}, projected`);
  line(axis.name, `${short(p.x)} ${axis.unit}, projected`);
  line(`speed relative to ${data.baseline}`, p.row.speedup === null ? "unknown" : `${p.row.speedup.toFixed(2)}×`);
  line("how", p.row.note || "native");
  box.querySelector(".answer").replaceChildren(title, list);
}

for (const box of document.querySelectorAll(".explore")) {
  box.addEventListener("change", () => draw(box));
  draw(box);
}
