/** A head's attention weights as a triangle of rows (queries) and columns (keys), each row named at its end. */

import { draw, percent } from "./dom.js";

const LABEL = 110; // of a token's name, in pixels
const LEGIBLE = 13; // pixels of a row that has room for a name

/**
 * Draw the triangle as SVG, `room` pixels wide; `onLook` gets the row that is pointed at. The SVG's `mark(row)` shows
 * which row is chosen; where rows are too low for all the names, only that row is named.
 */
export function drawHeatmap(tokens, weights, room, onLook) {
  const fitting = Math.max(1, Math.min(26, (room - LABEL) / tokens.length));
  const cell = fitting < LEGIBLE ? fitting : Math.floor(fitting);
  const size = tokens.length * cell;
  const svg = draw("svg", {
    class: cell < LEGIBLE ? "unnamed" : "",
    width: size + LABEL,
    height: size,
    viewBox: `0 0 ${size + LABEL} ${size}`,
    role: "img",
    "aria-label": `Attention of ${tokens.length} tokens; the same in words above`,
  });
  const band = draw("rect", { class: "band", height: cell, x: 0 });
  const frame = draw("path", { class: "edge", d: outline(tokens.length, cell) });
  const cells = weights.flatMap((row, i) => row.slice(0, i + 1).map((weight, j) => makeCell(weight, i, j, cell)));
  const names = tokens.map((token, i) => draw("text", { x: (i + 1) * cell + 6, y: Math.max((i + 0.72) * cell, 10) }, shorten(token)));
  svg.append(band, ...cells.filter(Boolean), frame, ...names);
  svg.mark = (row) => {
    band.setAttribute("y", row * cell);
    band.setAttribute("width", (row + 1) * cell);
    names.forEach((name, i) => name.setAttribute("class", i === row ? "chosen" : weights[row][i] >= 0.1 ? "seen" : ""));
  };
  svg.addEventListener("mousemove", (event) => {
    const row = Math.floor(
      (tokens.length * (event.clientY - svg.getBoundingClientRect().top)) / svg.getBoundingClientRect().height,
    );
    if (row >= 0 && row < tokens.length) onLook(row);
  });
  return svg;
}

/** Paint the triangle on a canvas, in the colour of its style. */
export function paintThumbnail(canvas, weights) {
  const context = canvas.getContext("2d");
  const cell = canvas.width / weights.length;
  requestAnimationFrame(() => {
    context.fillStyle = getComputedStyle(canvas).color; // known once the canvas stands in the page
    weights.forEach((row, i) =>
      row.slice(0, i + 1).forEach((weight, j) => {
        context.globalAlpha = Math.sqrt(weight); // so that what is faint can be seen
        context.fillRect(j * cell, i * cell, cell, cell);
      }),
    );
  });
}

function makeCell(weight, i, j, cell) {
  if (weight < 0.004) return null;
  const title = draw("title", {}, percent(weight));
  return draw(
    "rect",
    {
      class: "cell",
      x: j * cell,
      y: i * cell,
      width: cell,
      height: cell,
      "fill-opacity": Math.sqrt(weight).toFixed(3),
    },
    title,
  );
}

function outline(count, cell) {
  const stairs = Array.from({ length: count }, (_, i) => `H${(i + 1) * cell}V${(i + 1) * cell}`);
  return `M0 0${stairs.join("")}H0Z`;
}

function shorten(token) {
  const shown = token.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return shown.length > 14 ? `${shown.slice(0, 13)}…` : shown;
}
