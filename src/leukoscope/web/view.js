// The map over the cell, as far as the divider, which is dragged or moved by the slider; zoom by + and -, the arrow keys
// and Ctrl with the wheel.
let view = {at: 50, zoom: 1, x: 0, y: 0}, held = null, shown = ''
const stage = () => element.querySelector('.lk-stage')
const draw = () => {
  if (!stage()) return
  const source = stage().dataset.source ?? stage().querySelector('img')?.src, most = () => (view.zoom - 1) / 2
  if (source != shown) [view.zoom, view.x, view.y, shown] = [1, 0, 0, source]
  for (const way of 'xy') view[way] = Math.max(-most(), Math.min(most(), view[way]))
  const set = (name, value) => stage().style.setProperty(name, value)
  set('--at', `${view.at}%`), set('--zoom', view.zoom), set('--x', `${view.x * 100}%`), set('--y', `${view.y * 100}%`)
  stage().style.touchAction = view.zoom > 1 ? 'none' : 'pan-y'
  if (element.querySelector('input')) element.querySelector('input').value = view.at
}
const zoom = (factor) => { view.zoom = Math.max(1, Math.min(8, view.zoom * factor)); draw() }
const move = (x, y) => { view.x += x; view.y += y; draw() }
const place = (event) => {
  const box = stage().getBoundingClientRect()
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
}
element.addEventListener('input', (event) => { view.at = event.target.value; draw() })
element.addEventListener('keydown', (event) => {
  const keys = {'+': [zoom, 1.5], '-': [zoom, 1 / 1.5], ArrowLeft: [move, 0.1, 0], ArrowRight: [move, -0.1, 0],
    ArrowUp: [move, 0, 0.1], ArrowDown: [move, 0, -0.1]}[event.key]
  if (!keys || event.target != stage()) return
  event.preventDefault(), keys[0](...keys.slice(1))
})
element.addEventListener('wheel', (event) => {
  if (!event.ctrlKey || !event.target.closest('.lk-stage')) return
  event.preventDefault(), zoom(event.deltaY < 0 ? 1.25 : 0.8)
}, {passive: false})
element.addEventListener('pointerdown', (event) => { held = event.target.closest('.lk-stage') && place(event) })
addEventListener('pointermove', (event) => {
  if (!held || !stage()) return
  const [x, y] = place(event)
  if (view.zoom > 1) move(x - held[0], y - held[1])
  else if (stage().querySelector('div')) { view.at = Math.max(0, Math.min(100, x * 100)); draw() }
  held = [x, y]
})
for (const end of ['pointerup', 'pointercancel']) addEventListener(end, () => { held = null })
watch('value', draw)
draw()
