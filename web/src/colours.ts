// Colour tables of the overlays, the same colours as in the report.

import type { Niivue } from "@niivue/niivue";

interface Table { R: number[]; G: number[]; B: number[]; A: number[]; I: number[] }

export const LARGEST_DETERMINANT = 4;

/** Orange where volume grows from fixed to moving, blue where it shrinks, from 1/4 to 4; white where it folds. */
export function addJacobianColours(nv: Niivue): void {
  const table: Table = { R: [], G: [], B: [], A: [], I: [] };
  for (let at = 0; at < 256; at++) {
    const [r, g, b, a] = ofDeterminant((at / 255) * LARGEST_DETERMINANT);
    table.R.push(r); table.G.push(g); table.B.push(b); table.A.push(a); table.I.push(at);
  }
  nv.addColormap("jacobian", table);
}

/** Red, green, blue, opacity in 0..255; clear where volume stays, since NiiVue knows no half-clear colours. */
export function ofDeterminant(determinant: number): [number, number, number, number] {
  if (determinant <= 0) return [255, 255, 255, 255];
  const share = Math.min(1, Math.max(-1, Math.log2(determinant) / 2));
  const strength = Math.min(1, 0.25 + Math.abs(share));
  const [r, g, b] = (share > 0 ? [250, 140, 30] : [50, 130, 255]).map((full) => Math.round(128 + strength * (full - 128)));
  return [r!, g!, b!, Math.abs(share) < 0.03 ? 0 : 255];
}

/** A colour for each label, neighbours far apart on the colour circle; 0 is clear. */
export function labelColours(): { R: number[]; G: number[]; B: number[]; A: number[]; I: number[]; labels: string[] } {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  for (let at = 1; at < 256; at++) {
    const turn = (at * 0.61803398875) % 1;
    const [r, g, b] = [0, 1 / 3, 2 / 3].map((shift) => 127 + 120 * Math.cos(2 * Math.PI * (turn - shift)));
    table.R.push(Math.round(r!)); table.G.push(Math.round(g!)); table.B.push(Math.round(b!));
    table.A.push(255); table.I.push(at); table.labels.push(String(at));
  }
  return table;
}
