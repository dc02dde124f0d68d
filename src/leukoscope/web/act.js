// For an element whose parts name in `data-act` what they do: tells the server. A dot of a plot is one such part.
// Clicks are numbered: the server starts those of one moment in any order.
window.lkClicks ??= {newest: 0}
let pressed = {act: '', part: null}
addEventListener('lkgiven', () => {
  pressed = {act: '', part: null}
})
const ask = (value) => {
  pressed = {act: value, part: document.activeElement}
  if (/^(row|cell|read|add):/.test(value)) window.lkToPicture?.()
  window.lkClicks.newest += 1
  trigger('select', {index: window.lkClicks.newest, value})
}
// A click on a row that is closed opens it, on a dot, too. Dots are too small for a finger at any time.
const isPartOfRow = (part, {pointerType}) =>
  part?.matches('summary circle') && (pointerType === 'touch' || !part.closest('details').open)
element.addEventListener('click', (event) => {
  let part = event.target.closest('[data-act]')
  if (isPartOfRow(part, event)) part = null
  if (part && !part.matches('input, select, form')) ask(part.dataset.act)
  // A dot opens its cell, and does not close the row that it lies in.
  if (part?.closest('summary')) event.preventDefault()
  if (part?.closest('.lk-strip')) window.lkToPicture?.()
  const {tile} = event.target.closest('[data-tile]')?.dataset ?? {}
  if (tile) document.querySelector(`#tiles [data-act="${tile}"]`)?.click()
  if (event.target.closest('[data-choose]')) document.querySelector('#upload input[type=file]')?.click()
  if (event.target.closest('[data-give-again]')) window.lkGiveAgain()
  event.target.closest('[data-dismiss]')?.parentElement.remove()
  const copy = event.target.closest('[data-copy]')
  if (copy) {
    navigator.clipboard?.writeText(linkToWhatIsShown()).then(() => {
      copy.textContent = 'Link copied'
    })
  }
  if (event.target.closest('[data-brighter]')) {
    document.body.toggleAttribute('data-lk-plain')
    sayBrightness()
  }
})
// The address of what is shown, in the view that is shown; the page's own address names no view.
const linkToWhatIsShown = () => {
  const link = new URL(location)
  const pressed = document.querySelector('#picture .lk-view-button[aria-pressed="true"]')
  if (pressed) link.searchParams.set('view', pressed.dataset.act.replace('view:', ''))
  return String(link)
}
// What was chosen for one cell holds for the next.
const sayBrightness = () => {
  const button = element.querySelector('[data-brighter]')
  if (!button) return
  const isPlain = document.body.hasAttribute('data-lk-plain')
  button.setAttribute('aria-pressed', String(!isPlain))
  button.textContent = isPlain ? 'shown as it is' : 'shown brighter'
}
watch('value', () => setTimeout(sayBrightness))
// What was pressed may be gone, or do something else now, as the line of a model: the keyboard goes on from the answer.
const focusAgain = () => {
  const {act, part} = pressed
  const active = document.activeElement
  const isAnother = active === part && active.matches('button[data-act]') && active.dataset.act !== act
  if (!act || !(isAnother || active === document.body)) return
  const acts = [...element.querySelectorAll('[data-act]')]
  // Evidence has each model twice, of which a phone shows the second.
  const again = acts.find((other) => other.dataset.act === act && other.checkVisibility())
  const another = act.startsWith('add:') && element.querySelector('.lk-another summary')
  const next = again || another || element.querySelector('[tabindex="0"], .lk-chip summary')
  next?.focus({preventScroll: true})
}
watch('value', () => setTimeout(focusAgain))
element.addEventListener('submit', (event) => {
  const {act} = event.target.dataset
  if (!act) return
  event.preventDefault()
  ask(`${act}:${event.target.querySelector('input').value}`)
})
element.addEventListener('change', (event) => {
  const {act} = event.target.dataset
  if (act && event.target.value) ask(`${act}:${event.target.value}`)
})
