// Who listens to whom in one step: arcs between rows, and a W x W heat map.
const SVG = "http://www.w3.org/2000/svg";
const LEAST = 0.03; // weights below are not drawn as arcs

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) {
    const title = document.createElementNS(SVG, "title");
    title.textContent = text;
    made.append(title);
  }
  return made;
}

// The weights [W][W] of a step: of one layer, or the mean over all where `layer` is 0.
export function weightsAt(attention, step, layer) {
  const layers = attention?.[step];
  if (!layers) return null;
  if (layer > 0) return layers[layer - 1];
  return layers[0].map((row, i) =>
    row.map((_, j) => layers.reduce((sum, one) => sum + one[i][j], 0) / layers.length));
}

function told(weights, i, j) {
  return `row ${i + 1} listens to row ${j + 1}: ${Math.round(100 * weights[i][j])} %`;
}

// One arc for each pair of rows, from the reader to the row that it reads; its width is the weight.
export function drawArcs(svg, weights, only) {
  const width = weights.length;
  svg.setAttribute("viewBox", `0 0 ${100 * width} 88`);
  svg.setAttribute("preserveAspectRatio", "none");
  const arcs = [];
  for (let i = 0; i < width; i++) {
    for (let j = 0; j < width; j++) {
      if (i === j || weights[i][j] < LEAST || (only !== null && only !== i)) continue;
      const from = 100 * i + 50, to = 100 * j + 50;
      const height = 88 - Math.min(84, 20 + 12 * Math.abs(i - j)) * 1.2;
      arcs.push(element("path", {
        d: `M ${from} 88 Q ${(from + to) / 2} ${Math.max(-60, height - 20)} ${to} 88`,
        "stroke-width": (12 * weights[i][j]).toFixed(2),
        "vector-effect": "non-scaling-stroke",
      }, told(weights, i, j)));
    }
  }
  svg.replaceChildren(...arcs);
}

// Readers from top to bottom, rows that are read from left to right.
export function drawHeat(svg, weights) {
  const width = weights.length, most = Math.max(1e-6, ...weights.flat());
  svg.setAttribute("viewBox", `0 0 ${width} ${width}`);
  const cells = [];
  weights.forEach((row, i) => row.forEach((weight, j) => cells.push(element("rect", {
    x: j, y: i, width: 1, height: 1, "fill-opacity": (weight / most).toFixed(3),
  }, told(weights, i, j)))));
  svg.replaceChildren(...cells);
  const best = weights.map((row, i) => {
    const others = row.map((weight, j) => (i === j ? -1 : weight));
    return width > 1 ? told(weights, i, others.indexOf(Math.max(...others))) : "";
  });
  svg.setAttribute("aria-label", `Who listens to whom. ${best.join("; ")}`);
}
