// --- the plot: quality against cost -----------------------------------------------------------------------------------
const data = JSON.parse(document.getElementById("data").textContent);

function draw(box) {
  const choice = Object.fromEntries([...box.querySelectorAll("select")].map((select) => [select.name, select.value]));
  const quality = data.qualities[choice.quality];
  let cost = data.costs[choice.cost];
  const all = data.configurations.map((row) => row.cost[choice.model]?.[choice.device]?.[choice.cost]).filter((value) => value != null);
  if (cost.small && Math.max(...all) < cost.small.below) cost = cost.small;
  const points = [];
  data.configurations.forEach((row, index) => {
    const q = row.quality[choice.quality], c = row.cost[choice.model]?.[choice.device];
    if (q && c && c[choice.cost] !== null) points.push({ row, index, q, c, x: c[choice.cost] * cost.factor, y: q.value * quality.factor });
  });
  const svg = box.querySelector("svg");
  svg.replaceChildren();
  const xs = points.map((p) => p.x), ys = points.flatMap((p) => [p.q.low, p.q.high].map((v) => v * quality.factor));
  const floor = data.floor[choice.quality];
  if (floor) ys.push(floor.value * quality.factor);
  const base = data.baseline.cost[choice.model]?.[choice.device]?.[choice.cost];
  if (base != null) xs.push(base * cost.factor);
  if (!points.length) {
    svg.append(make("text", { x: W / 2, y: H / 2, "text-anchor": "middle" }, "nothing here is supported by this device"));
    return;
  }
  const high = Math.max(...xs) * 1.08, pad = (Math.max(...ys) - Math.min(...ys) || 1) * 0.08;
  const bottom = Math.min(...ys) - pad, top = Math.max(...ys) + pad;
  const px = (x) => LEFT + (x / high) * (W - LEFT - RIGHT), py = (y) => H - BOTTOM - ((y - bottom) / (top - bottom)) * (H - TOP - BOTTOM);
  for (const tick of ticks(0, high, 6)) {
    svg.append(make("line", { x1: px(tick), x2: px(tick), y1: TOP, y2: H - BOTTOM, class: "rule" }));
    svg.append(make("text", { x: px(tick), y: H - BOTTOM + 17, "text-anchor": "middle" }, short(tick)));
  }
  for (const tick of ticks(bottom, top, 6)) {
    svg.append(make("line", { x1: LEFT, x2: W - RIGHT, y1: py(tick), y2: py(tick), class: "rule" }));
    svg.append(make("text", { x: LEFT - 7, y: py(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  svg.append(make("text", { x: (LEFT + W - RIGHT) / 2, y: H - 8, "text-anchor": "middle" }, `${cost.name} (projected)`));
  svg.append(make("text", { x: 14, y: (TOP + H - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(TOP + H - BOTTOM) / 2})` }, `${quality.name} (measured)`));
  if (floor) {
    const y = py(floor.value * quality.factor);
    svg.append(make("line", { x1: LEFT, x2: W - RIGHT, y1: y, y2: y, class: "floor" }));
    svg.append(make("text", { x: W - RIGHT - 4, y: y - 5, "text-anchor": "end" }, "full precision, another seed"));
  }
  if (base != null) {
    const x = px(base * cost.factor);
    svg.append(make("line", { x1: x, x2: x, y1: TOP, y2: H - BOTTOM, class: "base" }));
    svg.append(make("text", { x: x - 5, y: H - BOTTOM - 8, "text-anchor": "end" }, `${data.baseline.label}, not measured`));
  }
  const better = (a, b) => quality.sign * (a.y - b.y);
  const front = [];
  for (const p of [...points].sort((a, b) => a.x - b.x || better(b, a))) if (!front.length || better(p, front.at(-1)) > 0) front.push(p);
  svg.append(make("polyline", { points: front.map((p) => `${px(p.x)},${py(p.y)}`).join(" "), class: "front" }));
  const taken = [], line = svg.clientWidth < 600 ? 22 : 14; // letters keep their size when the plot shrinks
  for (const p of points) {
    const colour = COLOURS[p.index % COLOURS.length];
    const mark = make("g", { tabindex: 0, role: "button", class: "mark", "aria-label": p.row.label });
    mark.append(make("line", { x1: px(p.x), x2: px(p.x), y1: py(p.q.low * quality.factor), y2: py(p.q.high * quality.factor), stroke: colour, "stroke-width": 2 }));
    mark.append(make("circle", { cx: px(p.x), cy: py(p.y), r: 16, class: "reach" }));
    mark.append(make("circle", { cx: px(p.x), cy: py(p.y), r: 6.5, fill: colour, stroke: "white", "stroke-width": 1.5 }));
    const left = px(p.x) > W - 130;
    let at = py(p.y) + 4; // a label gives way to those already there
    while (taken.some((other) => Math.abs(other.x - px(p.x)) < 9 * line && Math.abs(other.y - at) < line)) at += 2;
    taken.push({ x: px(p.x), y: at });
    mark.append(make("text", { x: px(p.x) + (left ? -11 : 11), y: at, "text-anchor": left ? "end" : "start", class: "name" }, p.row.label));
    const show = () => tell(box, p, choice, quality, cost);
    for (const event of ["pointerenter", "focus", "click"]) mark.addEventListener(event, show);
    svg.append(mark);
  }
  tell(box, front.at(-1), choice, quality, cost);
}

function tell(box, p, choice, quality, cost) {
  const panel = box.querySelector(".answer");
  panel.replaceChildren();
  const title = document.createElement("h3");
  title.textContent = p.row.label;
  const list = document.createElement("dl");
  const line = (name, text) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = text;
    list.append(dt, dd);
  };
  const f = quality.factor;
  line(quality.name, `${short(p.q.value * f)} (${short(p.q.low * f)} to ${short(p.q.high * f)}), ${p.q.prompts} prompts, measured`);
  line(cost.name, `${short(p.x)}, projected`);
  line(`speed relative to ${data.baseline.label}`, p.c.speedup === null ? "unknown" : `${p.c.speedup.toFixed(2)}×`);
  line("how", p.c.note || p.c.support);
  const pictures = document.createElement("div");
  pictures.className = "pair";
  for (const label of [data.reference, p.row.label]) {
    const source = document.querySelector(`table.grid tr[data-label="${CSS.escape(label)}"] img`);
    if (source) {
      const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
      image.src = source.dataset.plain || source.src;
      image.alt = source.alt;
      caption.textContent = label;
      figure.append(image, caption);
      pictures.append(figure);
    }
  }
  panel.append(title, list, pictures);
}

for (const box of document.querySelectorAll(".explore")) {
  box.addEventListener("change", () => draw(box));
  draw(box);
}
