// A release in the browser: the steps of Leukoscope's Python code, in the same order and with the same numbers.
// Which module of the package a part follows stands above it; `release.json` holds what it needs of the release.
import * as ort from './ort/ort.wasm.bundle.min.mjs'

const BACKGROUND_LEVEL = 8
const MIN_SIDE = 8
const MAX_SIDE_RATIO = 10
const MAX_PIXELS = 30e6
const $ = (id) => document.getElementById(id)

// Python rounds halves to the even number.
const rint = (x, low = Math.floor(x)) => low + (x - low > 0.5 || (x - low === 0.5 && low % 2 !== 0))
const sum = (values) => values.reduce((total, value) => total + value, 0)

// --- Pillow's Image.resize, of bytes --------------------------------------------------------------------------------
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
// Pillow sums whole numbers: weights times 2 ** 22, and a half for rounding.
const ONE = 2 ** 22
const whole = (weight) => Math.trunc(weight * ONE + (weight < 0 ? -0.5 : 0.5))

// For each pixel of the new edge: the first one of the old edge that it sees, and the weights from there on.
function weightsOf(edge, size, [reach, filter]) {
  const scale = edge / size
  const stretch = Math.max(scale, 1)
  const support = reach * stretch
  return Array.from({length: size}, (_, place) => {
    const middle = (place + 0.5) * scale
    const first = Math.max(0, Math.trunc(middle - support + 0.5))
    const end = Math.min(edge, Math.trunc(middle + support + 0.5))
    const weights = Array.from({length: end - first}, (_, k) => filter((k + first - middle + 0.5) / stretch))
    const total = sum(weights)
    return {first, weights: weights.map((weight) => whole(weight / total))}
  })
}

function weighted(weights, data, start, step) {
  let total = ONE / 2
  for (let k = 0; k < weights.length; k++) total += weights[k] * data[start + k * step]
  return Math.min(Math.max(Math.floor(total / ONE), 0), 255)
}

function resize(image, width, height, filter) {
  const rows = new Uint8Array(width * image.height * 3)
  weightsOf(image.width, width, FILTERS[filter]).forEach(({first, weights}, x) => {
    for (let y = 0; y < image.height; y++) for (let c = 0; c < 3; c++) {
      rows[(y * width + x) * 3 + c] = weighted(weights, image.data, (y * image.width + first) * 3 + c, 3)
    }
  })
  const data = new Uint8Array(width * height * 3)
  const stride = width * 3
  weightsOf(image.height, height, FILTERS[filter]).forEach(({first, weights}, y) => {
    for (let x = 0; x < stride; x++) data[y * stride + x] = weighted(weights, rows, first * stride + x, stride)
  })
  return {width, height, data}
}

// Image.crop: black beyond the picture.
function crop(image, left, top, side) {
  const data = new Uint8Array(side * side * 3)
  for (let y = Math.max(top, 0); y < Math.min(top + side, image.height); y++) {
    const from = Math.max(left, 0)
    const to = Math.min(left + side, image.width)
    const row = y * image.width
    data.set(image.data.subarray((row + from) * 3, (row + to) * 3), ((y - top) * side + from - left) * 3)
  }
  return {width: side, height: side, data}
}

// --- data/preprocessing.py: the pixels that the network sees --------------------------------------------------------
export function frame(image, {image_size: size, resized_side: side, interpolation}) {
  const shorter = Math.min(image.width, image.height)
  const resized = (edge) => edge === shorter ? side : Math.trunc(side * edge / shorter)
  const width = resized(image.width)
  const height = resized(image.height)
  return crop(resize(image, width, height, interpolation), rint((width - size) / 2), rint((height - size) / 2), size)
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
  const cell = rows.map((y) => columns.map((x) => Math.max(...[0, 1, 2].map((c) => at(y, x, c))) > BACKGROUND_LEVEL))
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
    const changes = points.map(([j, i]) => [rows[j], columns[i]])
      .filter(([y, x]) => x + apart < size && at(y, x + apart, 1) > BACKGROUND_LEVEL)
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

function oodCheck(pixels, {mean, deviation, inverse, limit, groups}) {
  const standard = pictureStatistics(pixels).map((value, k) => (value - mean[k]) / deviation[k])
  const squared = (values, matrix) => sum(values.map((a, i) => a * sum(values.map((b, j) => matrix[i][j] * b))))
  const distances = groups.map(({name, first, inverse: own}) => {
    const part = standard.slice(first, first + own.length)
    return {name, distance: squared(part, own) / own.length}
  })
  const [farthest] = distances.sort((a, b) => b.distance - a.distance)
  return {score: Math.sqrt(squared(standard, inverse)) / limit, group: farthest.name}
}

// --- inference/prediction.py ----------------------------------------------------------------------------------------
function softmax(logits) {
  const raised = Array.from(logits, (logit) => Math.exp(logit - Math.max(...logits)))
  const total = sum(raised)
  return raised.map((value) => value / total)
}

// A reason as a sentence, with digits enough to tell the value from the limit.
function reason(code, value, limit, more = 0) {
  const numbers = []
  const text = release.reasons[code].replace(/\{(value|limit):\.(\d)([f%])\}/g, (_, name, digits, kind) => {
    const number = (name === 'value' ? value : limit) * (kind === '%' ? 100 : 1)
    numbers.push(number.toFixed(+digits + more))
    return numbers.at(-1) + (kind === '%' ? '\u00a0%' : '')
  })
  return more < 5 && +numbers[0] === +numbers[1] ? reason(code, value, limit, more + 1) : {code, value, limit, text}
}

function decide(probabilities, ood, shorterSide) {
  const {abstain_below: abstainBelow, picture_side: side, side_may_differ: mayDiffer, labels} = release
  if (ood && ood.score > 1) return {outcome: 'out of distribution', reasons: [reason(`ood_${ood.group}`, ood.score, 1)]}
  const confidence = Math.max(...probabilities)
  const isUnsure = abstainBelow !== null && confidence < abstainBelow
  const reasons = isUnsure ? [reason('low_confidence', confidence, abstainBelow)] : []
  const isOtherFrame = side !== null && Math.abs(shorterSide / side - 1) > mayDiffer
  if (isOtherFrame) reasons.push(reason('other_frame', shorterSide, side))
  return {outcome: isUnsure ? 'abstain' : labels[probabilities.indexOf(confidence)], reasons}
}

// --- data/images.py -------------------------------------------------------------------------------------------------
export async function decode(blob, name) {
  const options = {imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'}
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error(`${name}: is no picture that this browser can open; give a PNG, JPEG, WebP or BMP file.`)
  })
  const {width, height} = bitmap
  const size = `${name}: is ${width}×${height} pixels`
  const [low, high] = [width, height].sort((a, b) => a - b)
  if (low < MIN_SIDE) throw new Error(`${size}, too small for a cell; give at least ${MIN_SIDE}×${MIN_SIDE}.`)
  const isStrip = high > MAX_SIDE_RATIO * low
  if (isStrip) throw new Error(`${size}, one side more than ${MAX_SIDE_RATIO} times the other; crop it to the cell.`)
  if (low * high > MAX_PIXELS) throw new Error(`${size}, more than ${MAX_PIXELS / 1e6} megapixels; crop it.`)
  const context = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true})
  context.drawImage(bitmap, 0, 0)
  const pixels = context.getImageData(0, 0, width, height)
  if (pixels.data.some((value, place) => place % 4 === 3 && value < 255)) {
    throw new Error(`${name}: has transparent parts; save it without transparency.`)
  }
  return {pixels, width, height, data: pixels.data.filter((_, place) => place % 4 !== 3)}
}

// --- the page -------------------------------------------------------------------------------------------------------
const release = await (await fetch('release.json')).json()
ort.env.wasm.numThreads = 1 // more need headers that not every server sends
ort.env.wasm.wasmPaths = {wasm: new URL('ort/ort-wasm-simd-threaded.wasm', import.meta.url).href}
const session = ort.InferenceSession.create(release.graph, {executionProviders: ['wasm']}).catch((error) => {
  throw new Error(`The model cannot be loaded (${error.message}); load the page again.`)
})

// One after the other: a session computes one picture at a time.
let running = session
function run(inputs) {
  running = running.catch(() => {}).then(async () => (await session).run(inputs))
  return running
}

export async function predict(image) {
  const pixels = frame(image, release.preprocessing)
  const {logits} = await run({pixel_values: networkInput(pixels, release.preprocessing)})
  const probabilities = softmax(logits.data)
  const ood = release.ood && oodCheck(pixels, release.ood)
  const decision = decide(probabilities, ood, Math.min(image.width, image.height))
  return {...decision, probabilities, ood_score: ood ? ood.score : null}
}

const element = (kind, text) => Object.assign(document.createElement(kind), {textContent: text})
const percent = (share) => {
  if (share > 0.99 && share < 1) return '>99\u00a0%'
  return share > 0 && share < 0.01 ? '<1\u00a0%' : `${rint(100 * share)}\u00a0%`
}

// Probabilities without a class are no result: they are not shown.
function show(state, verdict, reasons = [], probabilities = []) {
  $('answer').dataset.state = state
  $('verdict').textContent = verdict
  $('reasons').replaceChildren(...reasons.map(({text}) => element('li', text)))
  $('probabilities').replaceChildren(...probabilities.map((share, place) => {
    const row = element('li', `${percent(share)} ${release.labels[place]}`)
    row.style.setProperty('--share', `${100 * share}%`)
    return row
  }))
}

// Of pictures given one after the other, the last is answered.
let asked = 0
async function answer(blob, name) {
  const turn = ++asked
  $('name').textContent = name
  $('cell').width = 1 // empties it: no picture stands beside another's name
  show('busy', 'Reading …')
  try {
    const image = await decode(await blob, name)
    if (turn !== asked) return
    Object.assign($('cell'), {width: image.width, height: image.height, ariaLabel: name})
    $('cell').getContext('2d').putImageData(image.pixels, 0, 0)
    await new Promise((done) => setTimeout(done)) // so that the picture is seen before it is computed
    const {outcome, reasons, probabilities} = await predict(image)
    if (turn !== asked) return
    const hasClass = release.labels.includes(outcome)
    show(hasClass ? 'class' : 'none', release.verdicts[outcome], reasons, hasClass ? probabilities : [])
  } catch (error) {
    if (turn === asked) show('problem', error.message)
  }
}

const example = ({dataset: {file}, title}) => answer(fetch(file).then((response) => response.blob()), title)
for (const button of $('examples').children) button.addEventListener('click', () => example(button))
$('file').addEventListener('change', ({target}) => {
  const [file] = target.files
  target.value = '' // so that the same file can be chosen again
  if (file) answer(file, file.name)
})
document.addEventListener('paste', ({clipboardData: {files: [file]}}) => { if (file) answer(file, file.name) })
document.addEventListener('dragover', (event) => event.preventDefault())
document.addEventListener('drop', (event) => {
  event.preventDefault()
  const [file] = event.dataTransfer.files
  if (file) answer(file, file.name)
})
example($('examples').children[0])
