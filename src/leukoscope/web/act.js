// For an element whose parts name in `data-act` what they do: tells the server. A dot of a plot is one such part.
// Clicks are numbered: the server starts those of one moment in any order.
window.lkClicks ??= {newest: 0}
let asked = ''
const ask = (value) => {
  asked = value
  if (/^(row|cell|read|add):/.test(value)) window.lkToPicture?.()
  window.lkClicks.newest += 1
  trigger('select', {index: window.lkClicks.newest, value})
}
element.addEventListener('click', (event) => {
  const part = event.target.closest('[data-act]')
  if (part && !part.matches('input, select')) ask(part.dataset.act)
  // A dot opens its cell, not the row that it lies in.
  if (part?.closest('summary')) event.preventDefault()
  if (part?.closest('.lk-strip')) window.lkToPicture?.()
  if (event.target.closest('[data-choose]')) document.querySelector('#upload input[type=file]')?.click()
  const copy = event.target.closest('[data-copy]')
  if (copy) {
    navigator.clipboard?.writeText(location.href).then(() => {
      copy.textContent = 'Link copied'
    })
  }
  const brighter = event.target.closest('[data-brighter]')
  if (brighter) {
    const plain = document.body.toggleAttribute('data-lk-plain')
    brighter.setAttribute('aria-pressed', String(!plain))
    brighter.textContent = plain ? 'shown as it is' : 'shown brighter'
  }
})
// What was pressed is drawn anew, or gone: the keyboard goes on from there.
watch('value', () => {
  if (!asked || document.activeElement !== document.body) return
  const pressed = [...element.querySelectorAll('[data-act]')].find((part) => part.dataset.act === asked)
  const place = pressed ?? element.querySelector('[tabindex="0"]')
  place?.focus({preventScroll: true})
})
// What is opened below the answer is in sight.
element.addEventListener('toggle', ({target}) => {
  if (target.open && target.matches('.lk-more')) target.scrollIntoView({block: 'nearest'})
}, true)
element.addEventListener('change', (event) => {
  const {act} = event.target.dataset
  if (act && event.target.value) ask(`${act}:${event.target.value}`)
})
