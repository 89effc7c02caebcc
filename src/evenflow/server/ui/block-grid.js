/**
 * Where blocks are on the map. Blocks fill rows from left to right, as text does.
 *
 * A run is `[start, length, state, tenantIndex, requestIndex]`, as `/ui/blocks` sends it.
 */

const LARGEST_PITCH = 28;
const SMALLEST_PITCH = 4;
const TALLEST = 1.5; // how much taller than wide a cell may get to fill the height
const WIDE = 64; // columns from which on eight more or less do not matter

/**
 * @typedef {object} Grid
 * @property {number} columns
 * @property {number} rows
 * @property {number} pitch CSS pixels from one block to the next
 * @property {number} rowPitch CSS pixels from one row to the next, not always whole: see `rowTop`
 */

/**
 * The largest cells with which all blocks fit; under the smallest, the map grows downwards.
 * @returns {Grid}
 */
export function fitGrid(numBlocks, width, height) {
  for (let pitch = LARGEST_PITCH; ; pitch -= 1) {
    const fitting = Math.max(1, Math.floor(width / pitch));
    const columns = roundDown(fitting, fitting > WIDE ? 8 : 4);
    const rows = Math.ceil(numBlocks / columns);
    if (rows * pitch > height && pitch > SMALLEST_PITCH) continue;
    const rowPitch = Math.max(pitch, Math.min(height / rows, TALLEST * pitch));
    return { columns, rows, pitch, rowPitch };
  }
}

/** The largest multiple of `unit` up to `value`: it makes the numbers beside the rows round. */
function roundDown(value, unit) {
  return value > unit ? value - (value % unit) : value;
}

/** Where a row begins, in whole pixels, so that its edges are sharp. */
export function rowTop(grid, row) {
  return Math.round(row * grid.rowPitch);
}

/** The block at a point of the map, or null. */
export function blockAt(grid, numBlocks, x, y) {
  const column = Math.floor(x / grid.pitch);
  const row = Math.floor(y / grid.rowPitch);
  const block = row * grid.columns + column;
  const isInside = column >= 0 && column < grid.columns && row >= 0 && block < numBlocks;
  return isInside ? block : null;
}

/** The index of the run that holds a block; runs are in ascending order. */
export function runIndexAt(runs, block) {
  let low = 0;
  let high = runs.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (runs[middle][0] <= block) low = middle;
    else high = middle - 1;
  }
  return low;
}

/**
 * Cut a run where rows end.
 * @yields {{column: number, row: number, length: number, isFirst: boolean, isLast: boolean}}
 */
export function* pieces(grid, start, length) {
  const end = start + length;
  for (let block = start; block < end; ) {
    const column = block % grid.columns;
    const size = Math.min(end - block, grid.columns - column);
    yield {
      column,
      row: Math.floor(block / grid.columns),
      length: size,
      isFirst: block === start,
      isLast: block + size === end,
    };
    block += size;
  }
}
