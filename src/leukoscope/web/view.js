// The cell and, beyond the divider, its map. The divider is a slider of its own: dragged, or moved by the arrow keys.
// Zoom by + and -, by the wheel (with Ctrl, a pinch on a touch pad, where the page itself scrolls) or by two fingers;
// what is enlarged is dragged, or moved by the arrow keys.
const MOST = 8
let view = {at: 50, zoom: 1, least: 1, x: 0, y: 0}
let held = null
let isDragged = false
let shown = ''
const fingers = new Map()
const place = () => element.querySelector('.lk-view')
const isSmear = () => place().matches('.lk-field')
const both = () => place()?.querySelector('.lk-both')
const handle = () => place()?.querySelector('.lk-handle:not([hidden])')
const within = (value, least, most) => Math.max(least, Math.min(most, value))
// What the model sees is drawn where all of it is on the stage: two of its four sides would say nothing.
const isBeyondStage = (frame) => {
  const {top, bottom, left, right} = frame.getBoundingClientRect()
  const stage = place().getBoundingClientRect()
  return top < stage.top || bottom > stage.bottom || left < stage.left || right > stage.right
}
const draw = () => {
  if (!place()) return
  const source = place().dataset.source ?? place().querySelector('img')?.src
  const start = place().dataset.at ?? ''
  if (source + start !== shown) {
    shown = source + start
    if (start) view.at = Number(start)
    view.least = Number(place().dataset.zoom) || 1
    view.zoom = view.least
    view.x = 0
    view.y = 0
  }
  const most = (view.zoom - 1) / 2
  view.x = within(view.x, -most, most)
  view.y = within(view.y, -most, most)
  const style = both().style
  style.setProperty('--at', `${view.at}%`)
  style.setProperty('--zoom', view.zoom)
  style.setProperty('--x', `${view.x * 100}%`)
  style.setProperty('--y', `${view.y * 100}%`)
  place().toggleAttribute('data-enlarged', view.zoom > view.least)
  place().style.touchAction = view.zoom > view.least ? 'none' : 'pan-y'
  const frame = place().querySelector('.lk-frame')
  if (frame) place().toggleAttribute('data-frame-beyond', isBeyondStage(frame))
  drawScaleBar()
  handle()?.setAttribute('aria-valuenow', Math.round(view.at))
  handle()?.setAttribute('aria-valuetext', `${Math.round(view.at)} % cell, ${Math.round(100 - view.at)} % map`)
}
// The longest of these that is no longer than the bar may be, in pixels and as a share of the stage.
const LONGEST_BAR = 180
const WIDEST_BAR = 0.36
const BARS = [100, 50, 20, 10, 5, 2, 1]
const drawScaleBar = () => {
  const bar = element.querySelector('.lk-scale-bar')
  if (!bar) return
  const unit = Number(bar.dataset.share) * both().offsetWidth * view.zoom
  const longest = Math.min(LONGEST_BAR, WIDEST_BAR * place().offsetWidth)
  const number = BARS.find((count) => count * unit <= longest) ?? 1
  bar.textContent = `${number} ${bar.dataset.unit}`
  bar.style.width = `${number * unit}px`
  if (!place().matches('.lk-fills')) return
  // Within a picture that is narrower than the stage.
  const {right, bottom} = both().getBoundingClientRect()
  const stage = element.querySelector('.lk-stage').getBoundingClientRect()
  const below = Math.max(0, stage.bottom - bottom)
  // Beside the buttons that zoom, where it would lie on them.
  const beside = below > 16 ? 48 : 0
  bar.style.right = `${Math.max(beside, stage.right - right) + 16}px`
  bar.style.bottom = `${below + 16}px`
}
const zoom = (factor) => {
  view.zoom = within(view.zoom * factor, view.least, MOST)
  draw()
}
const move = (x, y) => {
  view.x += x
  view.y += y
  draw()
}
const divide = (at) => {
  view.at = within(at, 0, 100)
  draw()
}
// In shares of the picture as it is at first: a smear is enlarged with its boxes, of a cell only its layers are.
const point = (event) => {
  const {offsetWidth, offsetHeight} = both()
  const box = both().getBoundingClientRect()
  const [x, y] = isSmear() ? [view.x, view.y] : [0, 0]
  const left = box.left + (box.width - offsetWidth) / 2 - x * offsetWidth
  const top = box.top + (box.height - offsetHeight) / 2 - y * offsetHeight
  return [(event.clientX - left) / offsetWidth, (event.clientY - top) / offsetHeight]
}
const STAGE_KEYS = {
  '+': () => zoom(1.5),
  '-': () => zoom(1 / 1.5),
  ArrowLeft: () => move(0.1, 0),
  ArrowRight: () => move(-0.1, 0),
  ArrowUp: () => move(0, 0.1),
  ArrowDown: () => move(0, -0.1),
}
const DIVIDER_KEYS = {
  ArrowLeft: () => divide(view.at - 5),
  ArrowDown: () => divide(view.at - 5),
  ArrowRight: () => divide(view.at + 5),
  ArrowUp: () => divide(view.at + 5),
  Home: () => divide(0),
  End: () => divide(100),
}
element.addEventListener('keydown', (event) => {
  let keys = {}
  if (event.target === handle()) keys = DIVIDER_KEYS
  // The boxes of a smear are what the keyboard meets in it.
  else if (event.target === place() || event.target.matches('.lk-box')) keys = STAGE_KEYS
  if (!keys[event.key]) return
  event.preventDefault()
  keys[event.key]()
})
element.addEventListener('wheel', (event) => {
  const {scrollHeight, clientHeight} = document.documentElement
  const isPageScrolled = scrollHeight > clientHeight && !event.ctrlKey
  if (isPageScrolled || !event.target.closest('.lk-view') || !place()) return
  event.preventDefault()
  zoom(event.deltaY < 0 ? 1.25 : 0.8)
}, {passive: false})
element.addEventListener('click', ({target}) => {
  const by = target.closest('[data-zoom-by]')?.dataset.zoomBy
  if (by === '0') {
    view.zoom = view.least
    view.x = 0
    view.y = 0
    draw()
  } else if (by) zoom(Number(by))
})
// What ends a drag opens no box below it.
element.addEventListener('click', (event) => {
  if (!isDragged) return
  isDragged = false
  event.stopPropagation()
  event.preventDefault()
}, true)
const apart = () => {
  const [[x1, y1], [x2, y2]] = [...fingers.values()]
  return Math.hypot(x1 - x2, y1 - y2)
}
element.addEventListener('pointerdown', (event) => {
  if (!place() || !event.target.closest('.lk-view')) return
  fingers.set(event.pointerId, point(event))
  const onHandle = Boolean(event.target.closest('.lk-handle'))
  isDragged = false
  held = {onHandle, from: point(event), apart: fingers.size === 2 ? apart() : 0}
})
addEventListener('pointermove', (event) => {
  if (!held || !place()) return
  const [x, y] = point(event)
  if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [x, y])
  if (fingers.size === 2) {
    const now = apart()
    if (held.apart) zoom(now / held.apart)
    held.apart = now
    return
  }
  if (held.onHandle || (handle() && view.zoom <= view.least)) divide(x * 100)
  else if (view.zoom > view.least) {
    isDragged ||= isSmear() && Math.hypot(x - held.from[0], y - held.from[1]) > 0.004
    move(x - held.from[0], y - held.from[1])
  }
  held.from = [x, y]
})
for (const end of ['pointerup', 'pointercancel']) {
  addEventListener(end, (event) => {
    fingers.delete(event.pointerId)
    held = null
  })
}
// Of a batch, the people whose cells are open stay so: after a cell, and in another model's answer. Another batch may
// have people of the same names.
const openPeople = new Set()
const allCellsOf = new Set()
let openedBatch = ''
const person = (row) => row.querySelector('h3')?.title
// Where not all rows fit, only the first ones are shown, until all are asked for.
const picture = document.querySelector('#picture')
const isNarrow = () => innerWidth <= 820
const ROOM_OF_BUTTON = 44
const LEAST_ROW = 44
const fitRows = (row, height) => {
  const many = element.querySelector('.lk-many')
  if (!many) return
  many.style.setProperty('--row', row)
  many.style.height = height
}
// Rows that are a little too high for the stage are lower, so that the last one is in sight.
const shareStage = (many, rows) => {
  const tooHigh = (many.scrollHeight - many.clientHeight) / rows.length
  const row = Math.floor(rows[0].querySelector('svg').getBoundingClientRect().height - tooHigh)
  if (tooHigh > 0 && row >= LEAST_ROW) fitRows(`${row}px`, '')
}
const showAllRows = () => {
  picture.setAttribute('data-all-rows', '')
  fitRows('', '')
}
const showFirstRows = () => picture.removeAttribute('data-all-rows')
// In a wide window the cells of an opened person scroll in the list; the page does where it is narrow.
const offerAllRows = () => {
  const many = element.querySelector('.lk-many')
  if (!many) return
  const button = element.querySelector('.lk-all-rows')
  const rows = [...many.querySelectorAll('.lk-subject')]
  const isOpened = rows.some(({open}) => open)
  const stage = many.parentElement
  fitRows('', '')
  if (!isOpened && rows.length) shareStage(many, rows)
  button.hidden = many.scrollHeight <= many.clientHeight || (isOpened && !isNarrow())
  if (button.hidden || isOpened || picture.matches('[data-all-rows]')) return
  // The last one that is shown is whole, and they fill the room above the button.
  const room = stage.clientHeight - ROOM_OF_BUTTON
  const shown = rows.filter((row) => row.offsetTop + row.offsetHeight <= room)
  if (!shown.length) return
  const last = shown.at(-1)
  const extra = (room - last.offsetTop - last.offsetHeight) / shown.length
  fitRows(`${last.querySelector('svg').clientHeight + extra}px`, `${room}px`)
}
// Rows that are drawn anew are fitted before they are painted, so that none moves. (The picture of a dot's cell, which
// is put on the stage itself, changes none.)
new MutationObserver((changes) => {
  if (changes.some(({target}) => !target.matches('.lk-stage'))) offerAllRows()
}).observe(element, {childList: true, subtree: true})
addEventListener('lkgiven', showFirstRows)
addEventListener('resize', () => {
  if (place()) drawScaleBar()
  offerAllRows()
  for (const row of element.querySelectorAll('.lk-subject[open]:has(h3)')) showCells(row)
})
element.addEventListener('click', ({target}) => {
  if (target.closest('.lk-all-rows')) showAllRows()
})
// Where the page scrolls, the way back from a cell leads to its place in the list.
let openedCell = ''
let isBack = false
element.addEventListener('click', ({target}) => {
  const act = target.closest('[data-act]')?.dataset.act ?? ''
  isBack = act === 'back'
  if (act.startsWith('cell:')) openedCell = act
})
const showOpenedCell = () => {
  if (!isBack || !(isNarrow() || picture.matches('[data-all-rows]'))) return
  isBack = false
  element.querySelector(`.lk-grid [data-act="${openedCell}"]`)?.scrollIntoView({block: 'center'})
}
// The keyboard meets no row that is out of sight.
element.addEventListener('focusin', ({target}) => {
  if (isNarrow() && target.matches('.lk-many :is(summary, button):focus-visible')) showAllRows()
})
// The person opened last, how far the list is scrolled beyond the row, and how far it was when the row was opened.
const nobody = {name: '', scrolled: 0, before: 0}
let lastOpened = nobody
// How far the list is scrolled where a row begins below the head of the axis.
const topOf = (row) => row.offsetTop - element.querySelector('.lk-cells-axis').offsetHeight
// A list too short for its row to begin there ends lower: what stands below the head is a whole row.
const endWithWholeRow = (row) => {
  const many = row.closest('.lk-many')
  const most = many.scrollHeight - many.clientHeight
  if (topOf(row) <= most) return
  const first = [...many.querySelectorAll('.lk-subject')].find((other) => topOf(other) >= most)
  row.style.minHeight = `${row.offsetHeight + topOf(first) - most}px`
}
const rowOpenedLast = () => [...element.querySelectorAll('.lk-subject[open]')].find(
  (row) => person(row) === lastOpened.name,
)
element.addEventListener('toggle', ({target}) => {
  if (!target.matches('.lk-subject') || !person(target)) return
  if (!target.open) target.style.minHeight = ''
  if (target.open && isNarrow()) showAllRows()
  offerAllRows()
  const many = target.closest('.lk-many')
  if (!target.open) {
    openPeople.delete(person(target))
    // The list is where it was, and the row of who was closed is in sight.
    if (person(target) === lastOpened.name) many.scrollTop = lastOpened.before
    target.scrollIntoView({block: 'nearest'})
    return
  }
  showCells(target)
  // The cells of a person who is opened now come into sight, below the head of the axis.
  const isNew = !openPeople.has(person(target))
  openPeople.add(person(target))
  if (!isNew) return
  lastOpened = {name: person(target), scrolled: 0, before: many.scrollTop}
  endWithWholeRow(target)
  many.scrollTop = topOf(target)
}, true)
element.addEventListener('scroll', ({target}) => {
  const row = target.matches('.lk-many') && rowOpenedLast()
  if (row) lastOpened = {...lastOpened, scrolled: target.scrollTop - topOf(row)}
}, true)
const openAgain = () => {
  const {batch} = element.querySelector('.lk-shows-batch')?.dataset ?? {}
  if (batch && batch !== openedBatch) {
    openedBatch = batch
    openPeople.clear()
    allCellsOf.clear()
    showFirstRows()
    lastOpened = nobody
  }
  for (const row of element.querySelectorAll('details.lk-subject')) {
    if (openPeople.has(person(row))) row.open = true
    if (row.open && person(row)) showCells(row)
  }
  offerAllRows()
  // Its row is where it was: the picture is drawn anew, from its top.
  const row = rowOpenedLast()
  if (row) {
    endWithWholeRow(row)
    element.querySelector('.lk-many').scrollTop = topOf(row) + lastOpened.scrolled
  }
  showOpenedCell()
}
// Of a person's cells the first ones are shown, until all are asked for; in a wide window, all that have room.
const showCells = (row) => {
  row.toggleAttribute('data-all-cells', true)
  const room = row.closest('.lk-many').clientHeight - element.querySelector('.lk-cells-axis').offsetHeight
  const hasRoom = !isNarrow() && row.offsetHeight <= room
  row.toggleAttribute('data-all-cells', hasRoom || allCellsOf.has(person(row)))
}
element.addEventListener('click', ({target}) => {
  const row = target.closest('.lk-subject')
  if (target.matches('.lk-more-cells')) {
    const next = [...row.querySelectorAll('.lk-grid button')].find((cell) => !cell.checkVisibility())
    allCellsOf.add(person(row))
    showCells(row)
    next?.focus({preventScroll: true})
  }
  if (target.matches('.lk-close-person')) {
    row.open = false
    row.querySelector('summary').focus({preventScroll: true})
  }
})
// The scale of a smear is changed in the line that says it.
const scaleForm = () => element.querySelector('.lk-chip details')
const closeScaleForm = () => {
  scaleForm().open = false
  scaleForm().querySelector('form').reset()
  scaleForm().querySelector('summary').focus()
}
element.addEventListener('toggle', ({target}) => {
  if (target !== scaleForm() || !target.open) return
  target.querySelector('input').focus()
  target.querySelector('input').select()
}, true)
element.addEventListener('click', ({target}) => {
  if (target.closest('[data-cancel]')) closeScaleForm()
})
element.addEventListener('keydown', ({key, target}) => {
  if (key === 'Escape' && target.closest('.lk-chip form')) closeScaleForm()
})
// The cell of the dot that a mouse is on, where it is listed behind the dot's row.
const showCellOf = (dot) => {
  element.querySelector('.lk-cell-of-dot')?.remove()
  const listed = dot && element.querySelector(`.lk-grid li:has([data-act="${dot.dataset.act}"])`)
  if (!listed) return
  const cell = listed.querySelector('img')
  const stage = element.querySelector('.lk-stage')
  const {left, right, top, bottom} = dot.getBoundingClientRect()
  const around = stage.getBoundingClientRect()
  const frame = document.createElement('div')
  frame.className = cell.closest('.lk-dark') ? 'lk-cell-of-dot lk-dark' : 'lk-cell-of-dot'
  const words = document.createElement('p')
  words.append(...[...listed.querySelectorAll('b, .lk-end')].map((part) => part.cloneNode(true)))
  frame.append(cell.cloneNode(), words)
  stage.append(frame)
  const x = (left + right - frame.offsetWidth) / 2 - around.left
  const above = top - around.top - frame.offsetHeight - 8
  frame.style.left = `${within(x, 0, around.width - frame.offsetWidth)}px`
  frame.style.top = `${above < 0 ? bottom - around.top + 8 : above}px`
}
element.addEventListener('pointerover', ({target, pointerType}) => {
  if (pointerType === 'mouse') showCellOf(target.closest('circle[data-act]'))
})
element.addEventListener('pointerleave', () => showCellOf(null))
// A cell that the pointer or the keyboard is on is marked in the smear and beside it.
const stage = element.closest('#stage')
const markCell = (act) => {
  for (const part of stage.querySelectorAll('button.lk-box, .lk-answer .lk-thumbnail')) {
    part.toggleAttribute('data-marked', part.dataset.act === act)
  }
}
for (const kind of ['pointerover', 'focusin']) {
  stage.addEventListener(kind, ({target}) => markCell(target.closest('[data-act]')?.dataset.act))
}
for (const kind of ['pointerleave', 'focusout']) stage.addEventListener(kind, () => markCell(null))
watch('value', () => {
  draw()
  setTimeout(openAgain)
})
draw()
