// Releases in the browser: the steps of Leukoscope's Python code, in the same order and with the same numbers.
// Which function of the package each one follows stands above it; `releases.json` holds what they need of each release.
import * as ort from './ort/ort.wasm.bundle.min.mjs'
import watchStage from './view.js'

const BACKGROUND_LEVEL = 8
const BLACK_SHARE = 0.05
const MIN_SIDE = 8
const MAX_SIDE_RATIO = 10
const MAX_PIXELS = 30e6
const FORM_SIDE = 200
const TYPES = ['image/png', 'image/jpeg', 'image/webp', 'image/bmp', 'image/x-ms-bmp', '']
const $ = (id) => document.getElementById(id)

// Python rounds halves to the even number.
const rint = (x, low = Math.floor(x)) => low + (x - low > 0.5 || (x - low === 0.5 && low % 2 !== 0))
const clip = (x, low, high) => Math.min(Math.max(x, low), high)
const sum = (values) => values.reduce((total, value) => total + value, 0)

// --- Pillow's Image.resize ------------------------------------------------------------------------------------------
const sinc = (x) => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x)
const FILTERS = {
  bilinear: [1, (x) => Math.max(1 - Math.abs(x), 0)],
  bicubic: [2, (x) => {
    const a = -0.5
    x = Math.abs(x)
    return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
  }],
  lanczos: [3, (x) => -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0],
}

function weightsOf(edge, from, to, size, [reach, filter]) {
  // Pillow keeps the edges of a box in single precision.
  from = Math.fround(from)
  const scale = Math.fround(Math.fround(to) - from) / size
  const stretch = Math.max(scale, 1)
  const support = reach * stretch
  return Array.from({length: size}, (_, place) => {
    const middle = from + (place + 0.5) * scale
    const first = Math.max(0, Math.trunc(middle - support + 0.5))
    const end = Math.min(edge, Math.trunc(middle + support + 0.5))
    const weights = Array.from({length: end - first}, (_, k) => filter((k + first - middle + 0.5) / stretch))
    const total = sum(weights)
    return {first, weights: weights.map((weight) => weight / total)}
  })
}

// image: {width, height, data}, any number of channels; box: [left, top, right, bottom] of it that becomes the result.
function resize(image, width, height, name, box = [0, 0, image.width, image.height]) {
  const channels = image.data.length / (image.width * image.height)
  const bytes = !(image.data instanceof Float32Array)
  // Of bytes Pillow sums whole numbers: weights times 2 ** 22, and a half for rounding.
  const one = 2 ** 22
  const whole = (weight) => Math.trunc(weight * one + (weight < 0 ? -0.5 : 0.5))
  const exact = (places) => bytes ? places.map(({first, weights}) => ({first, weights: weights.map(whole)})) : places
  const finished = bytes ? (total) => clip(Math.floor((total + one / 2) / one), 0, 255) : (total) => total
  const make = (length) => bytes ? new Uint8Array(length) : new Float32Array(length)

  const rows = make(width * image.height * channels)
  exact(weightsOf(image.width, box[0], box[2], width, FILTERS[name])).forEach(({first, weights}, x) => {
    for (let y = 0; y < image.height; y++) for (let c = 0; c < channels; c++) {
      let total = 0
      const start = (y * image.width + first) * channels + c
      for (let k = 0; k < weights.length; k++) total += weights[k] * image.data[start + k * channels]
      rows[(y * width + x) * channels + c] = finished(total)
    }
  })
  const data = make(width * height * channels)
  const stride = width * channels
  exact(weightsOf(image.height, box[1], box[3], height, FILTERS[name])).forEach(({first, weights}, y) => {
    for (let x = 0; x < stride; x++) {
      let total = 0
      for (let k = 0; k < weights.length; k++) total += weights[k] * rows[(first + k) * stride + x]
      data[y * stride + x] = finished(total)
    }
  })
  return {width, height, data}
}

// Image.crop: black beyond the picture.
function crop(image, left, top, right, bottom) {
  const width = right - left
  const height = bottom - top
  const data = new Uint8Array(width * height * 3)
  for (let y = Math.max(top, 0); y < Math.min(bottom, image.height); y++) {
    const from = Math.max(left, 0)
    const to = Math.min(right, image.width)
    const row = y * image.width
    data.set(image.data.subarray((row + from) * 3, (row + to) * 3), ((y - top) * width + from - left) * 3)
  }
  return {width, height, data}
}

// --- data/images.py and data/preprocessing.py -----------------------------------------------------------------------
const brightest = (data, pixel) => Math.max(data[3 * pixel], data[3 * pixel + 1], data[3 * pixel + 2])

// The pixels that the network sees, and the part of the picture that they show.
export function frame(image, {image_size: size, resized_side: side, interpolation}) {
  const shorter = Math.min(image.width, image.height)
  const resized = (edge) => edge === shorter ? side : Math.trunc(side * edge / shorter)
  const width = resized(image.width)
  const height = resized(image.height)
  const [left, top] = [width, height].map((edge) => rint((edge - size) / 2))
  const pixels = crop(resize(image, width, height, interpolation), left, top, left + size, top + size)
  const across = image.width / width
  const down = image.height / height
  return {pixels, box: [left * across, top * down, (left + size) * across, (top + size) * down]}
}

// inference/prediction.py: where a point of one of the eight views lies in the upright picture.
function upright(view, size, y, x) {
  for (let k = 0; k < view % 4; k++) [y, x] = [x, size - 1 - y]
  return y * size + (view < 4 ? x : size - 1 - x)
}

function turned({width, data}, view) {
  const pixels = new Uint8Array(data.length)
  for (let y = 0; y < width; y++) for (let x = 0; x < width; x++) {
    const from = 3 * upright(view, width, y, x)
    pixels.set(data.subarray(from, from + 3), 3 * (y * width + x))
  }
  return {width, height: width, data: pixels}
}

function networkInput({width, data}, {mean, std}) {
  const places = width * width
  const values = new Float32Array(3 * places)
  for (let c = 0; c < 3; c++) for (let k = 0; k < places; k++) {
    values[c * places + k] = (data[3 * k + c] - mean[c] * 255) / (std[c] * 255)
  }
  return new ort.Tensor('float32', values, [1, 3, width, width])
}

// --- inference/ood.py -----------------------------------------------------------------------------------------------
const DENSITY = Float32Array.from({length: 256}, (_, level) => -Math.log((level + 1) / 256))

export function pictureStatistics(picture) {
  const step = Math.max(1, rint(picture.width / 48))
  const starts = step > 1 ? [0, Math.floor(step / 2)] : [0]
  const grids = starts.flatMap((down) => starts.map((across) => gridStatistics(picture, step, down, across)))
  if (grids.includes(null)) return Array(22).fill(-10)
  return grids[0].map((_, k) => sum(grids.map((statistics) => statistics[k])) / grids.length)
}

// The statistics of every `step`-th pixel from (across, down) on; null of a picture with too few points of a cell.
function gridStatistics({width: size, data}, step, down, across) {
  const placesFrom = (start) => Array.from({length: Math.ceil((size - start) / step)}, (_, k) => start + k * step)
  const rows = placesFrom(down)
  const columns = placesFrom(across)
  const height = rows.length
  const width = columns.length
  const at = (y, x, c) => data[(y * size + x) * 3 + c]
  const cell = rows.map((y) => columns.map((x) => brightest(data, y * size + x) > BACKGROUND_LEVEL))
  const points = []
  cell.forEach((row, j) => row.forEach((inside, i) => { if (inside) points.push([j, i]) }))
  const count = points.length
  if (count < 20) return null

  const density = [0, 1, 2].map((c) => points.map(([j, i]) => DENSITY[at(rows[j], columns[i], c)]))
  const mean = density.map((values) => sum(values) / count)
  const centred = density.map((values, c) => values.map((value) => value - mean[c]))
  const covariance = centred.map((a) => centred.map((b) => sum(a.map((value, k) => value * b[k])) / count))
  const deviation = covariance.map((row, c) => Math.sqrt(row[c]) + 1e-3)
  const skewness = centred.map((values, c) => sum(values.map((value) => (value / deviation[c]) ** 3)) / count)
  const correlation = (a, b) => covariance[a][b] / deviation[a] / deviation[b]

  const texture = [1, 2, 4].map((apart) => {
    const changes = points.map(([j, i]) => [rows[j], columns[i]]).filter(([y, x]) => x + apart < size && at(y, x + apart, 1) > BACKGROUND_LEVEL)
      .map(([y, x]) => Math.abs(DENSITY[at(y, x + apart, 1)] - DENSITY[at(y, x, 1)]))
    return changes.length ? Math.log(sum(changes) / changes.length + 1e-3) : 0
  })

  const dark = cell.map((row) => row.map(() => false))
  points.forEach(([j, i], k) => { dark[j][i] = density[1][k] > mean[1] })
  const nucleus = Math.max(1, sum(dark.flat()))
  const perimeter = (mask) => sum(mask.flatMap((row, j) => row.map((here, i) =>
    (j > 0 && mask[j - 1][i] !== here) + (i > 0 && row[i - 1] !== here))))
  const place = ([j, i]) => [(j + 0.5) / height, (i + 0.5) / width]
  const places = points.map(place)
  const y = sum(places.map((at) => at[0])) / count
  const x = sum(places.map((at) => at[1])) / count
  const varY = sum(places.map((at) => (at[0] - y) ** 2)) / count
  const varX = sum(places.map((at) => (at[1] - x) ** 2)) / count
  const both = sum(places.map((at) => (at[0] - y) * (at[1] - x))) / count
  const spread = 2 * Math.hypot((varY - varX) / 2, both)
  const bottom = rows[height - 1]
  const right = columns[width - 1]
  const channels = [0, 1, 2]
  const acrossEdges = sum(columns.flatMap((x) => channels.map((c) => at(down, x, c) + at(bottom, x, c))))
  const downEdges = sum(rows.flatMap((y) => channels.map((c) => at(y, across, c) + at(y, right, c))))
  return [
    ...mean, ...deviation.map(Math.log), ...skewness,
    correlation(0, 1), correlation(0, 2), correlation(1, 2), ...texture,
    Math.log(count / (height * width)), nucleus / count,
    Math.log(perimeter(dark) ** 2 / nucleus + 1), Math.log(perimeter(cell) ** 2 / count + 1),
    Math.log((varY + varX + spread) / Math.max(varY + varX - spread, 1e-6)),
    Math.hypot(y - 0.5, x - 0.5), (acrossEdges / width + downEdges / height) / 3 / 1020,
  ]
}

function oodChecks(pixels, {mean, deviation, inverse, limit, groups}) {
  const standard = pictureStatistics(pixels).map((value, k) => (value - mean[k]) / deviation[k])
  const squared = (values, matrix) => sum(values.map((a, i) => a * sum(values.map((b, j) => matrix[i][j] * b))))
  const distances = groups.map(({name, first, inverse: own}) => {
    const part = standard.slice(first, first + own.length)
    return {name, times: Math.sqrt(squared(part, own) / own.length)}
  })
  const [{name: group}] = [...distances].sort((a, b) => b.times - a.times)
  return {score: Math.sqrt(squared(standard, inverse)) / limit, group, distances}
}

// --- inference/gradcam.py -------------------------------------------------------------------------------------------
function shareOnCell(map, {width, data}) {
  const cell = Array.from({length: width * width}, (_, pixel) => brightest(data, pixel) > BACKGROUND_LEVEL)
  const inside = sum(cell)
  if (sum(map.data) <= 0 || !inside || 1 - inside / cell.length < BLACK_SHARE) return null
  const wide = resize(map, width, width, 'bilinear').data
  return sum(wide.filter((_, pixel) => cell[pixel])) / sum(wide)
}

// Where all of a square about a pixel, as far as it lies in the picture, is 1: `reach` pixels to each side.
function eroded(mask, width, height, reach) {
  const along = (source, lines, length, place) => {
    const inner = new Uint8Array(source.length)
    for (let line = 0; line < lines; line++) {
      const before = new Uint32Array(length + 1)
      for (let k = 0; k < length; k++) before[k + 1] = before[k] + source[place(line, k)]
      for (let k = 0; k < length; k++) {
        const first = Math.max(0, k - reach)
        const end = Math.min(length, k + reach + 1)
        inner[place(line, k)] = before[end] - before[first] === end - first
      }
    }
    return inner
  }
  const rows = along(mask, height, width, (y, x) => y * width + x)
  return along(rows, width, height, (x, y) => y * width + x)
}

// The cell's outline and the frame of what the network sees, as thin lines over a drawn map.
function drawLines(drawn, image, [x0, y0, x1, y1], framed, {outline, frame}) {
  const {width, height} = image
  const paint = (x, y, colour) => drawn.data.set(colour, 4 * (y * width + x))
  const shorter = Math.min(width, height)
  const cell = Uint8Array.from({length: width * height}, (_, pixel) => brightest(image.data, pixel) > BACKGROUND_LEVEL)
  const inside = sum(cell)
  if (inside && 1 - inside / cell.length >= BLACK_SHARE) {
    const inner = eroded(cell, width, height, 1 + Math.floor(shorter / 300))
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const pixel = y * width + x
      if (cell[pixel] && !inner[pixel]) paint(x, y, outline)
    }
  }
  if (!framed) return
  const thick = Math.max(1, rint(shorter / 200))
  for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) {
    if (Math.min(x - x0, y - y0, x1 - 1 - x, y1 - 1 - y) < thick) paint(x, y, frame)
  }
}

function drawOverlay(image, map, peak, [left, top, right, bottom], {colours, line_colours: lines}) {
  const x0 = Math.max(0, rint(left))
  const x1 = Math.min(image.width, rint(right))
  const y0 = Math.max(0, rint(top))
  const y1 = Math.min(image.height, rint(bottom))
  const across = map.width / (right - left)
  const down = map.height / (bottom - top)
  const inMap = [(x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down]
    .map((edge, k) => clip(edge, 0, k % 2 ? map.height : map.width))
  const shares = map.data.map((value) => peak > 0 ? clip(value / peak, 0, 1) : 0)
  const warmth = resize({...map, data: shares}, x1 - x0, y1 - y0, 'bilinear', inMap)
  const drawn = new ImageData(image.width, image.height)
  for (let y = 0; y < image.height; y++) for (let x = 0; x < image.width; x++) {
    const pixel = y * image.width + x
    const [r, g, b] = image.data.subarray(3 * pixel, 3 * pixel + 3)
    const grey = (r * 19595 + g * 38470 + b * 7471 + 32768) >> 16
    const seen = x >= x0 && x < x1 && y >= y0 && y < y1
    const warm = seen ? clip(warmth.data[(y - y0) * warmth.width + x - x0], 0, 1) : 0
    const cover = 0.5 * Math.min(2 * warm, 1)
    const colour = colours[rint(warm * 255)]
    for (let c = 0; c < 3; c++) drawn.data[4 * pixel + c] = grey * (1 - cover) + colour[c] * cover
    drawn.data[4 * pixel + 3] = 255
  }
  const framed = right - left <= image.width - 1 || bottom - top <= image.height - 1
  drawLines(drawn, image, [x0, y0, x1, y1], framed, lines)
  return drawn
}

function show(canvas, pixels) {
  Object.assign(canvas, {width: pixels.width, height: pixels.height})
  canvas.getContext('2d').putImageData(pixels, 0, 0)
}

// --- inference/prediction.py ----------------------------------------------------------------------------------------
function softmax(logits) {
  const raised = Array.from(logits, (logit) => Math.exp(logit - Math.max(...logits)))
  const total = sum(raised)
  return raised.map((value) => value / total)
}

function decide(probabilities, ood, onCell, shorterSide, release) {
  const {abstain_below: abstainBelow, least_on_cell: leastOnCell, reasons: texts, labels} = release
  const {picture_side: side, side_may_differ: mayDiffer} = release
  const reason = (code, value, limit) => {
    const told = (more) => {  // with digits enough to tell the value from the limit
      const shown = []
      const text = texts[code].replace(/\{(value|limit):\.(\d)([f%])\}/g, (_, name, digits, kind) => {
        shown.push(((name === 'value' ? value : limit) * (kind === '%' ? 100 : 1)).toFixed(+digits + more))
        return kind === '%' ? `${shown.at(-1)}\u00a0%` : shown.at(-1)
      })
      return more < 5 && shown.length === 2 && +shown[0] === +shown[1] ? told(more + 1) : text
    }
    return {code, value, limit, text: told(0)}
  }
  if (ood && ood.score > 1) return {outcome: 'out of distribution', reasons: [reason(`ood_${ood.group}`, ood.score, 1)]}
  const confidence = Math.max(...probabilities)
  const reasons = []
  if (abstainBelow !== null && confidence < abstainBelow) reasons.push(reason('low_confidence', confidence, abstainBelow))
  const outcome = reasons.length ? 'abstain' : labels[probabilities.indexOf(confidence)]
  if (side !== null && Math.abs(shorterSide / side - 1) > mayDiffer) reasons.push(reason('other_frame', shorterSide, side))
  const isOff = onCell !== null && leastOnCell !== null && onCell < leastOnCell
  if (isOff) reasons.push(reason('explanation_off_cell', onCell, leastOnCell))
  return {outcome, reasons}
}

// reports/text.py
function agreement(likely, decisions, labels) {
  const [called] = likely
  const same = likely.filter((label, k) => label === called && labels.includes(decisions[k])).length
  if (same === decisions.length) return 'The same in all eight orientations'
  const unsure = decisions.filter((outcome) => outcome === 'abstain').length
  if (unsure === decisions.length) return 'Undecided in all eight orientations'
  const isUndecided = decisions[0] === 'abstain'
  const parts = [`${same} of ${decisions.length} orientations agree`]
  if (isUndecided) {
    parts[0] = `Undecided in ${unsure} of ${decisions.length} orientations`
    if (same) parts.push(`${same} ${same === 1 ? 'says' : 'say'} ${called}`)
  }
  for (const label of [...labels].sort()) {
    const count = label === called ? 0 : decisions.filter((outcome) => outcome === label).length
    if (count) parts.push(`${count} ${count === 1 ? 'says' : 'say'} ${label}`)
  }
  if (unsure && !isUndecided) parts.push(`${unsure} ${unsure === 1 ? 'is' : 'are'} undecided`)
  return parts.join('; ')
}

// What is unlike the training cells, and how far; the reasons as they are where nothing was measured.
function foreign(reasons, {parts, sentence}) {
  const reason = reasons.find(({code, limit}) => parts[code] && limit)
  if (!reason) return reasons.map(({text}) => text).join(' ')
  const times = reason.value / reason.limit
  // Just above the limit, "1.0 times as far" would be no reason.
  const digits = times < 1.1 ? 2 : Number(times < 10)
  return sentence.replace('{part}', parts[reason.code]).replace('{times}', times.toFixed(digits))
}

// --- the page -------------------------------------------------------------------------------------------------------
const element = (kind, text, name = '') => Object.assign(document.createElement(kind), {textContent: text, className: name})
const percent = (share) => share > 0.99 && share < 1 ? '>99\u00a0%' : share > 0 && share < 0.01 ? '<1\u00a0%' : `${rint(100 * share)}\u00a0%`
const pause = () => new Promise((done) => setTimeout(done)) // so that what was just said is seen

function tell(text, problem = false) {
  Object.assign($('status'), {textContent: text, className: problem ? 'lk-message' : 'lk-quiet', hidden: !text})
  if (problem) $('result').hidden = $('acts').hidden = true
}

// A thin line runs above the answer while something works.
const work = (busy) => document.querySelector('.lk-answer').classList.toggle('lk-working', busy)

async function decode(blob, name) {
  const fix = 'give a PNG, JPEG, WebP or BMP file.'
  if (!TYPES.includes(blob.type)) throw new Error(`${name}: is no picture that is read here; ${fix}`)
  const options = {imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'}
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error(`${name}: is no picture that this browser can open; ${fix}`)
  })
  const {width, height} = bitmap
  const size = `${name}: is ${width}×${height} pixels`
  const [low, high] = [width, height].sort((a, b) => a - b)
  if (low < MIN_SIDE) throw new Error(`${size}, too small for a cell; give at least ${MIN_SIDE}×${MIN_SIDE}.`)
  if (high > MAX_SIDE_RATIO * low) throw new Error(`${size}, one side more than ${MAX_SIDE_RATIO} times the other; crop it to the cell.`)
  if (low * high > MAX_PIXELS) throw new Error(`${size}, more than ${MAX_PIXELS / 1e6} megapixels; crop it to the cell.`)
  const context = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true})
  context.drawImage(bitmap, 0, 0)
  const rgba = context.getImageData(0, 0, width, height)
  const data = new Uint8Array(3 * width * height)
  for (let pixel = 0; pixel < width * height; pixel++) {
    if (rgba.data[4 * pixel + 3] < 255) throw new Error(`${name}: has transparent parts; save it without transparency.`)
    data.set(rgba.data.subarray(4 * pixel, 4 * pixel + 3), 3 * pixel)
  }
  return {name, rgba, image: {width, height, data}}
}

// One view decides. The map is the mean over all eight, turned back.
async function predict(model, session, {name, image, pixels, box}, views) {
  const {labels} = model
  const shorter = Math.min(image.width, image.height)
  const sharesOfViews = []
  let maps = null
  let side = 0
  for (let turn = 0; turn < views; turn++) {
    const {logits, grad_cam: own} = await run(session, {pixel_values: networkInput(turned(pixels, turn), model.preprocessing)})
    sharesOfViews.push(softmax(logits.data))
    if (own) {
      side = own.dims[2]
      maps ??= new Float32Array(own.data.length)
      own.data.forEach((value, place) => {
        const at = place % side ** 2
        maps[place - at + upright(turn, side, Math.floor(at / side), at % side)] += value / views
      })
    }
    await pause()
  }
  const likely = sharesOfViews.map((shares) => shares.indexOf(Math.max(...shares)))
  const [best] = likely
  const [probabilities] = sharesOfViews
  const data = views > 1 && maps?.map((value) => Math.max(value, 0))
  const mapOf = (label) => ({width: side, height: side, data: data.slice(label * side ** 2, (label + 1) * side ** 2)})
  const ood = model.ood && oodChecks(pixels, model.ood)
  const decided = decide(probabilities, ood, data ? shareOnCell(mapOf(best), pixels) : null, shorter, model)
  const decisions = sharesOfViews.map((shares) => decide(shares, ood, null, shorter, model).outcome)
  return {
    best, decisions, sharesOfViews, likely: likely.map((place) => labels[place]), box, distances: ood?.distances,
    maps: data && decided.outcome !== 'out of distribution' ? labels.map((_, place) => mapOf(place)) : null,
    peak: data ? data.reduce((a, b) => Math.max(a, b)) : 0,
    answer: {
      source: name, ...decided, probabilities: Object.fromEntries(labels.map((label, k) => [label, probabilities[k]])),
      ood_score: ood ? ood.score : null, views, agreeing_views: likely.filter((place) => place === best).length,
      model: model.name, revision: model.revision, view_box: box, notice: settings.notice,
    },
  }
}

// --- models: the graph of each is loaded when it is first asked -----------------------------------------------------
const {models: ownSettings, ...settings} = await (await fetch('releases.json')).json()
const models = ownSettings.map((model) => ({...settings, ...model}))
ort.env.wasm.numThreads = 1 // more need headers that not every server sends
ort.env.wasm.wasmPaths = {wasm: new URL('ort/ort-wasm-simd-threaded.wasm', import.meta.url).href}
const sessions = new Map()

function load(number) {
  if (!sessions.has(number)) {
    const graph = `${models[number].folder}/onnx/model.onnx`
    const session = ort.InferenceSession.create(graph, {executionProviders: ['wasm']}).catch((error) => {
      sessions.delete(number)
      throw new Error(`${models[number].short_name} cannot be loaded (${error.message}); try again, or load the page again.`)
    })
    sessions.set(number, session)
  }
  return sessions.get(number)
}

// One after the other: a session computes one picture at a time.
let running = Promise.resolve()
function run(session, inputs) {
  running = running.catch(() => {}).then(() => session.run(inputs))
  return running
}

// --- what is shown --------------------------------------------------------------------------------------------------
const classColour = (model, place) => place < 0 ? 'var(--lk-none)' : `var(--lk-class-${model.colour_places[place]})`
const view = {}
let asked = 0 // number of the picture that was given last
let opened = 0 // number of the model whose answer is open
let current = null // the picture, and what each model says of it
let chosenView = '' // what the visitor chose to see; '' for what the model's maps open with
let mapLabel = '' // the class whose map the visitor chose; '' for the most probable one
watchStage($('picture'), () => {}, (_, draw) => { view.draw = draw })

const isBright = ({data}, pixel) => brightest(data, pixel) > BACKGROUND_LEVEL

// data/images.py: at least half of the border is black, and not all of the picture.
function isCutOut(image) {
  const {width, height} = image
  const columns = [...Array(width).keys()]
  const rows = [...Array(height).keys()]
  const border = [...columns, ...columns.map((x) => (height - 1) * width + x), ...rows.map((y) => y * width),
    ...rows.map((y) => y * width + width - 1)]
  const bright = border.filter((pixel) => isBright(image, pixel)).length
  return bright <= 0.5 * border.length && image.data.some((value) => value > BACKGROUND_LEVEL)
}

// data/images.py: whether 95 % of a cell on black stay below white when it is shown 1.6 times as bright.
function isDark({width, height, data}) {
  const levels = []
  for (let pixel = 0; pixel < width * height; pixel++) {
    if (!isBright({data}, pixel)) continue
    levels.push(0.299 * data[pixel * 3] + 0.587 * data[pixel * 3 + 1] + 0.114 * data[pixel * 3 + 2])
  }
  levels.sort((low, high) => low - high)
  return levels.length > 0 && levels[Math.round(0.95 * (levels.length - 1))] * 1.6 <= 255
}

// web/views.py: how much a cell on black is enlarged at first, so that it fills the stage.
function enlarged(image) {
  const {width, height} = image
  let farthest = 0
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    if (!isBright(image, y * width + x)) continue
    farthest = Math.max(farthest, Math.abs(x - width / 2) / (width / 2), Math.abs(y - height / 2) / (height / 2))
  }
  return Math.min(2.2, Math.max(1, 0.7 / Math.max(farthest, 1e-6)))
}

function stand({name, image, rgba}) {
  show($('cell'), rgba)
  $('cell').ariaLabel = $('caption').textContent = name
  $('caption').title = name
  const onBlack = isCutOut(image)
  const dark = onBlack && isDark(image)
  $('under').classList.toggle('lk-on-black', onBlack)
  $('under').classList.toggle('lk-dark', dark)
  $('brighter').hidden = !dark
  Object.assign($('stage-of').dataset, {source: asked, zoom: onBlack ? enlarged(image) : 1})
  $('stage-of').style.setProperty('--ratio', image.width / image.height)
  chosenView = mapLabel = ''
  drawStage(null)
}

// What the visitor chose to see of a prediction: the cell, its eight orientations, or the map over the cell, beyond the
// divider. A refused picture, or one that is being read, is shown as it is.
function drawStage(prediction) {
  const model = models[opened]
  const maps = prediction?.maps
  const offered = prediction && prediction.answer.views === 8 && prediction.answer.outcome !== 'out of distribution'
  let name = chosenView || (model.maps_passed === true ? 'map' : 'cell')
  if (!offered || (name === 'map' && !maps)) name = 'cell'
  const mapped = name === 'map'
  $('picture').firstElementChild.className = `lk-stage lk-shows-${name}`
  $('views').hidden = !offered
  for (const button of $('views').children) {
    button.ariaPressed = String(button.dataset.view === name)
    button.hidden = button.dataset.view === 'map' && !maps
  }
  $('stage-of').hidden = name === 'turned'
  $('forms').hidden = name !== 'turned'
  $('forms').classList.toggle('lk-forms', name === 'turned') // the stage is as high as its forms
  if (name === 'turned') drawTurned(model, prediction)
  for (const id of ['over', 'divider', 'tools']) $(id).hidden = !mapped
  if (mapped) {
    const label = model.labels.includes(mapLabel) ? mapLabel : model.labels[prediction.best]
    const map = maps[model.labels.indexOf(label)]
    show($('overlay'), drawOverlay(current.picture.image, map, prediction.peak, prediction.box, model))
    $('overlay').ariaLabel = `Map for ${label}`
    $('maps-failed').hidden = $('strength').hidden = model.maps_passed !== false
    $('map-labels').replaceChildren(...model.labels.flatMap((name, place) => {
      const button = Object.assign(element('button', name, 'lk-label'), {type: 'button', title: `Map for ${name}`})
      button.ariaPressed = String(name === label)
      button.addEventListener('click', () => {
        mapLabel = name
        draw()
        $('map-labels').querySelector('[aria-pressed=true]').focus() // the buttons are drawn anew
      })
      return place ? [' · ', button] : [button]
    }))
  }
  view.draw()
}

// web/views.py: the picture in its eight orientations, and what the model says of each.
function drawTurned(model, {sharesOfViews, decisions, likely}) {
  const {labels, orientations} = model
  const source = $('cell')
  const dark = $('under').classList.contains('lk-dark')
  const scale = Math.min(1, FORM_SIDE / Math.max(source.width, source.height))
  $('forms').querySelector('ul').replaceChildren(...orientations.map((title, view) => {
    const form = element('li', '')
    const label = likely[view]
    const words = `${label}\u00a0${percent(sharesOfViews[view][labels.indexOf(label)])}`
    const hasClass = labels.includes(decisions[view])
    form.style.setProperty('--c', classColour(model, labels.indexOf(decisions[view])))
    const frame = element('div', '', dark ? 'lk-dark' : '')
    frame.append(orientation(source, view, scale, title))
    const about = element('p', '')
    about.append(element('b', hasClass ? words : 'not sure'))
    if (!hasClass) about.append(' ', element('small', words))
    about.append(element('span', title))
    form.append(frame, about)
    return form
  }))
}

// A picture in one of the eight orientations: mirrored or not, then turned anticlockwise.
function orientation(source, view, scale, title) {
  const [width, height] = [source.width, source.height].map((edge) => Math.max(1, rint(edge * scale)))
  const canvas = document.createElement('canvas')
  Object.assign(canvas, {width: view % 2 ? height : width, height: view % 2 ? width : height, role: 'img', ariaLabel: title})
  const context = canvas.getContext('2d')
  context.translate(canvas.width / 2, canvas.height / 2)
  context.rotate(-view % 4 * Math.PI / 2)
  if (view > 3) context.scale(-1, 1)
  context.drawImage(source, -width / 2, -height / 2, width, height)
  return canvas
}

// How far a refused picture is from the training cells by colour, texture and shape: web/stage.py.
function distanceBars(distances, names) {
  const longest = Math.max(4, ...distances.map(({times}) => times))
  return distances.map(({name, times}) => {
    const row = element('li', '')
    const bar = Object.assign(element('i', ''), {ariaHidden: 'true'})
    bar.style.setProperty('--v', `${100 * times / longest}%`)
    bar.style.setProperty('--usual', `${100 / longest}%`)
    row.append(element('span', names[name]), bar, element('b', `${times.toFixed(1)} ×`))
    return row
  })
}

// reports/trust.py: the person that a file's name gives, where one of that name trained the model; else "".
function trainingSubject({training_subjects: subjects}, name) {
  const number = (subject) => subject.replace(/^0+(?=\d)/, '')
  const subject = name.match(/UID_(H?\d+)_/)?.[1] ?? ''
  return subject && subjects.some((trained) => number(trained) === number(subject)) ? subject : ''
}

function shareRows(model, probabilities) {
  return model.labels.map((name, place) => {
    const row = element('li', '')
    row.style.setProperty('--c', classColour(model, place))
    const meaning = model.words.meanings[name]
    row.append(element('b', percent(probabilities[name])), meaning ? ` ${meaning} (${name})` : ` ${name}`)
    return row
  })
}

// web/templates/parts.html: two rows of meters, further people first.
function trustTable(model) {
  const {labels, words} = model
  const table = element('table', '')
  const head = table.createTHead().insertRow()
  head.append(...['of 100, recognised', ...labels.map((label) => words.cells_of[label])].map((text) => {
    return Object.assign(element('th', text), {scope: 'col'})
  }))
  const body = table.createTBody()
  for (const {name, caveat, meters} of words.trust_rows) {
    const row = body.insertRow()
    const heading = Object.assign(element('th', name), {scope: 'row'})
    row.append(heading)
    if (meters.length && caveat) heading.append(' ', element('b', caveat, 'lk-earlier'))
    if (!meters.length) row.append(Object.assign(element('td', caveat, 'lk-quiet'), {colSpan: labels.length}))
    for (const meter of meters) row.insertCell().append(drawnMeter(meter, model))
  }
  const changes = words.trust_rows.map((row) => row.small_changes).filter(Boolean)
  return [element('h3', 'How far to trust it'), table, ...changes.map((text) => element('p', text, 'lk-quiet'))]
}

function drawnMeter({label, share, low, high, name}, model) {
  const meter = Object.assign(element('div', '', 'lk-meter'), {role: 'img', ariaLabel: name, title: name})
  meter.style.setProperty('--v', `${share}%`)
  meter.style.setProperty('--c', classColour(model, model.labels.indexOf(label)))
  const track = element('i', '')
  if (low !== null) {
    const interval = element('i', '')
    interval.style.setProperty('--from', `${low}%`)
    interval.style.setProperty('--to', `${high}%`)
    track.append(interval)
  }
  meter.append(track, Object.assign(element('span', share), {ariaHidden: 'true'}))
  return meter
}

const verdictOf = (model, {best, answer: {outcome, probabilities}}) => {
  const label = model.labels[best]
  // The words follow the whole percentage that stands beside them.
  const firm = rint(100 * probabilities[label]) >= rint(100 * model.firm)
  return model.labels.includes(outcome) ? model.words.pills[label][Number(firm)] : model.verdicts[outcome]
}

// What the open model says, in the demo's words and order.
function present(model, prediction) {
  const {best, likely, decisions, maps, answer} = prediction
  const {words, labels} = model
  const {outcome, probabilities, views} = answer
  const hasClass = labels.includes(outcome)
  const refused = outcome === 'out of distribution'
  $('question').textContent = words.question
  $('classes').textContent = words.classes
  $('model').textContent = maps && model.maps_passed ? `${model.short_name} · its maps passed our checks` : model.short_name
  $('outcome').textContent = verdictOf(model, prediction)
  $('result').style.setProperty('--c', classColour(model, labels.indexOf(outcome)))
  // A map that failed its checks is no reason to doubt the answer: what it shows stands with the map.
  const isOfFailedMap = ({code}) => code === 'explanation_off_cell' && model.maps_passed === false
  const offCell = answer.reasons.filter(isOfFailedMap)
  const doubts = answer.reasons.filter((reason) => !isOfFailedMap(reason))
  const because = refused ? foreign(answer.reasons, model.foreign) : doubts.map(({text}) => text).join(' ')
  const subject = trainingSubject(model, answer.source)
  const caveats = [...words.warnings, subject && model.in_training.replace('{subject}', subject), because].filter(Boolean)
  $('notes').replaceChildren(...caveats.map((text) => element('li', text)))
  $('notes').hidden = !caveats.length
  $('shares').hidden = !hasClass
  $('probabilities').replaceChildren(...shareRows(model, probabilities))
  $('would').replaceChildren(...shareRows(model, probabilities))
  $('unsaid').hidden = hasClass
  $('track').replaceChildren(...labels.map((name, k) => {
    const part = element('i', '')
    part.style.flex = probabilities[name]
    part.style.setProperty('--c', classColour(model, k))
    return part
  }))
  const distances = refused && prediction.distances || []
  $('distances').replaceChildren(...distanceBars(distances, model.statistic_groups))
  $('distances').hidden = $('usual').hidden = !distances.length
  $('orientations').hidden = refused
  $('dots').replaceChildren(...Array.from({length: 8}, (_, k) => {
    const dot = element('i', '')
    if (views > 1) dot.style.setProperty('--c', classColour(model, labels.indexOf(decisions[k])))
    return dot
  }))
  $('agreement').textContent = views > 1 ? agreement(likely, decisions, labels) : 'Computing eight orientations …'
  $('trust').replaceChildren(...(refused ? [] : trustTable(model)))
  $('trust').hidden = refused
  $('calls').textContent = words.trust[outcome] ?? ''
  const aboutMaps = views > 1 ? 'This model has no map.' : ''
  const aboutMap = [`Map for ${labels[best]}.`, ...offCell.map(({text}) => text), model.map_check, model.map_caveat]
  $('map-of').textContent = maps ? aboutMap.join(' ') : refused ? '' : aboutMaps
  const about = [`Model ${model.name}${model.revision ? `, ${model.revision.slice(0, 12)}` : ''}`, words.trained_on]
  $('about').textContent = `${about.filter(Boolean).join('. ')}.`
  drawStage(prediction)
  URL.revokeObjectURL($('save').href)
  $('save').href = URL.createObjectURL(new Blob([JSON.stringify(answer, null, 1)], {type: 'application/json'}))
  $('result').dataset.views = views
  $('result').dataset.model = model.name
  $('result').hidden = $('acts').hidden = false
  tell('')
}

// A line for each other model: what it says, or what reading by it would download.
function presentOthers() {
  const others = models.map((_, number) => number).filter((number) => number !== opened)
  $('others').hidden = !others.length || !current
  $('others').replaceChildren(...others.map((number) => {
    const model = models[number]
    const button = Object.assign(element('button', '', 'lk-other'), {type: 'button'})
    const prediction = current?.answers.get(number)
    button.append(element('span', prediction ? model.short_name : `read by ${model.short_name}`, 'lk-quiet'))
    if (prediction) button.append(...lineOf(model, prediction))
    else button.append(element('span', sessions.has(number) ? 'loaded' : `downloads ${model.megabytes} MB`, 'lk-quiet'))
    button.addEventListener('click', () => choose(number))
    return button
  }))
}

function lineOf(model, prediction) {
  const {best, answer: {outcome, probabilities}} = prediction
  if (outcome === 'abstain') return [element('span', 'Not sure')]
  if (!model.labels.includes(outcome)) return [element('span', 'No class')]
  const share = probabilities[model.labels[best]]
  const words = verdictOf(model, prediction).replace('leukaemic ', '')
  const bar = Object.assign(element('span', '', 'lk-bar'), {ariaHidden: 'true'})
  bar.append(...[[share, classColour(model, best)], [1 - share, 'var(--lk-line)']].map(([flex, colour]) => {
    const part = element('i', '')
    part.style.flex = flex
    part.style.setProperty('--c', colour)
    return part
  }))
  return [element('span', words), bar, element('b', percent(share))]
}

function draw() {
  const prediction = current?.answers.get(opened)
  if (prediction) present(models[opened], prediction)
  presentOthers()
}

// --- what a visitor does --------------------------------------------------------------------------------------------
// Reads a picture by a model: one view, which decides, then all eight.
async function read(number) {
  const turn = asked
  const {picture, answers, reading} = current
  if (reading.has(number) || answers.has(number)) return
  reading.add(number)
  const isCurrent = () => turn === asked
  if (number === opened) work(true)
  try {
    if (number === opened && !sessions.has(number)) {
      tell(`Loading ${models[number].short_name} (${models[number].megabytes} MB) …`)
    }
    const session = await load(number)
    if (!isCurrent()) return
    if (number === opened) tell('Reading …')
    await pause()
    const framed = {...picture, ...frame(picture.image, models[number].preprocessing)}
    for (const views of [1, 8]) {
      if (!isCurrent()) return
      const prediction = await predict(models[number], session, framed, views)
      if (!isCurrent()) return
      answers.set(number, prediction)
      draw()
    }
  } catch (error) {
    if (isCurrent() && number === opened) {
      tell(error.message, true)
      presentOthers()
    }
  } finally {
    reading.delete(number)
    if (isCurrent() && number === opened) work(false)
  }
}

// Opens a model's answer; its graph is downloaded now where it was not before.
async function choose(number) {
  opened = number
  chosenView = mapLabel = ''
  const prediction = current?.answers.get(number)
  if (!prediction) {
    $('result').hidden = $('acts').hidden = true
    drawStage(null)
  }
  draw()
  document.querySelector('.lk-answer').focus() // the line that was pressed is another model's now
  if (current && !prediction) await read(number)
}

// Reads a picture; of several given one after the other, the last is shown, and of several in one go, the first. Models
// that are already loaded read it, too.
async function answer(blob, name, tile = null) {
  const turn = ++asked
  for (const button of document.querySelectorAll('#examples button')) button.ariaPressed = String(button === tile)
  try {
    const picture = await decode(await blob, name)
    if (turn !== asked) return
    $('result').hidden = $('acts').hidden = $('others').hidden = true // what follows the answer would move when it comes
    current = {picture, answers: new Map(), reading: new Set()}
    stand(picture)
    await read(opened)
    for (const number of sessions.keys()) if (turn === asked && number !== opened) await read(number)
  } catch (error) {
    if (turn !== asked) return
    current = null
    work(false)
    drawStage(null)
    $('stage-of').hidden = $('views').hidden = $('tools').hidden = $('brighter').hidden = true
    $('caption').textContent = ''
    presentOthers()
    tell(error.message, true)
  }
}

$('file').addEventListener('change', ({target}) => {
  const [file] = target.files
  target.value = '' // so that the same file can be chosen again
  if (file) answer(file, file.name)
})
for (const button of $('views').children) button.addEventListener('click', () => {
  chosenView = button.dataset.view
  draw()
})
document.addEventListener('keydown', ({key}) => {
  const text = document.querySelector('.lk-foot details[open]')
  if (key !== 'Escape' || !text) return
  text.open = false
  text.querySelector('summary').focus()
})
$('brighter').addEventListener('click', ({target}) => {
  const plain = document.body.toggleAttribute('data-lk-plain')
  target.ariaPressed = String(!plain)
  target.textContent = plain ? 'shown as it is' : 'shown brighter'
})
const example = (tile) => answer(fetch(tile.dataset.file).then((response) => response.blob()), tile.title, tile)
for (const button of document.querySelectorAll('#examples button')) {
  button.addEventListener('click', () => example(button))
}
const dark = matchMedia('(prefers-color-scheme: dark)')
const paint = () => document.documentElement.classList.toggle('dark', dark.matches)
dark.addEventListener('change', paint)
paint()
document.addEventListener('paste', ({clipboardData: {files: [file]}}) => { if (file) answer(file, file.name) })
for (const kind of ['dragover', 'dragleave', 'drop']) document.addEventListener(kind, (event) => {
  event.preventDefault()
  $('drop').classList.toggle('over', kind === 'dragover')
  const file = kind === 'drop' && event.dataTransfer.files[0]
  if (file) answer(file, file.name)
})
example(document.querySelector('#examples button'))
