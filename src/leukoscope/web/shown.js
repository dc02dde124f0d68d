// For the answer: model and example go to the page's address, which opens them again; the page keeps what it shows for
// when the server has been away, and follows the browser's Back and Forward, to the cells of a smear or a batch, too.
const open = () => element.querySelector('[data-model]')?.dataset
// What Back or Forward asked for, and as which click: another answer on the way to it has no place among the addresses.
let awaited = null
const askForHistory = (value, wanted) => {
  ask(value)
  awaited = {...wanted, click: window.lkClicks.newest}
}
const isOnTheWay = ({example, given, cell}) => {
  if (awaited?.click !== window.lkClicks.newest || element.querySelector('.lk-message')) awaited = null
  if (!awaited) return false
  // Between a cell and its smear or batch: what still comes of the one that is left has no place, either.
  if (awaited.cell !== undefined) return (cell ?? '') !== awaited.cell
  return awaited.example ? example !== awaited.example : given !== awaited.given
}
addEventListener('lkgiven', () => {
  awaited = null
})
window.lkAddress = (change = location.search ? 'pushState' : 'replaceState') => {
  const to = new URL(location)
  const shown = open() ?? {}
  const tab = document.body.dataset.lkTab === 'cell' ? '' : document.body.dataset.lkTab
  const card = tab === 'evidence' ? document.body.dataset.lkCard : ''
  const cell = shown.cell ?? ''
  // What has no address is found again by its number, as long as the visit keeps it.
  const given = shown.example ? '' : shown.given ?? ''
  const number = shown.example && cell ? Number(cell) + 1 : ''
  for (const [name, value] of Object.entries({model: shown.model, tab, card, example: shown.example, cell: number})) {
    if (value) to.searchParams.set(name, value)
    else to.searchParams.delete(name)
  }
  // The view that a link named is opened; the page's own address names none.
  const namesView = to.searchParams.has('view')
  to.searchParams.delete('view')
  const isSame = cell === (history.state?.cell ?? '') && given === (history.state?.given ?? '')
  if (String(to) !== String(location) || !isSame) history[awaited || namesView ? 'replaceState' : change]({cell, given}, '', to)
  awaited = null
}
// The lines on top and at the end of the page speak of the classes of the model whose answer is shown.
const nameClasses = () => {
  const {question, classes} = element.querySelector('[data-question]')?.dataset ?? {}
  if (question === undefined) return
  document.querySelector('#lk-question').textContent = question
  document.querySelector('#lk-classes').textContent = classes
}
// What is opened below the buttons stays so while the same picture's answer grows, and for its other models.
let openedFor = ''
const shownPicture = () => [open()?.given, open()?.example].join(' ')
element.addEventListener('toggle', ({target}) => {
  if (target.matches('.lk-more')) openedFor = target.open ? shownPicture() : ''
}, true)
const openMoreAgain = () => {
  const more = element.querySelector('.lk-more')
  if (more && openedFor === shownPicture()) more.open = true
}
watch('value', () => {
  delete document.body.dataset.lkGiven
  if (open() && !isOnTheWay(open())) window.lkAddress()
  nameClasses()
  setTimeout(openMoreAgain)
})
// When the server answers again, Gradio loads the page anew.
addEventListener('pagehide', () => {
  const shown = ['picture', 'answer'].map((id) => document.querySelector(`#${id} .html-container > div`)?.innerHTML ?? '')
  try {
    sessionStorage.lkShown = JSON.stringify(shown)
  } catch {
    delete sessionStorage.lkShown
  }
})
addEventListener('popstate', ({state}) => {
  const to = new URL(location).searchParams
  const tab = window.lkTabOf(location)
  if (tab !== document.body.dataset.lkTab || window.lkCardOf(location) !== document.body.dataset.lkCard) {
    window.lkTab(tab)
    return
  }
  const example = to.get('example')
  const cell = state?.cell ?? ''
  const given = state?.given ?? ''
  // The same picture by another model: in the view that is shown.
  const isPicture = example ? example === open()?.example : given && given === open()?.given
  const model = to.get('model')
  if (isPicture && cell === (open()?.cell ?? '') && model !== open()?.model) {
    const lines = [...element.querySelectorAll('[data-act]')]
    const line = lines.find(({dataset}) => dataset.ofModel === model || dataset.act === `read:${model}`)
    if (line) {
      ask(line.dataset.act)
      return
    }
  }
  const isWhole = ['smear', 'people'].includes(example)
  if (example && !isWhole) {
    askForHistory(`example:${example}`, {example})
    return
  }
  if (isWhole && example !== open()?.example) {
    askForHistory(cell ? `${example}:${cell}` : example, {example})
    return
  }
  if (given && given !== open()?.given) {
    askForHistory(`given:${given}`, {given})
    return
  }
  const isOffered = document.querySelector(`#picture [data-act="${cell ? `cell:${cell}` : 'back'}"]`)
  // Another picture of a visitor is not in the address: the page then stays as it is, and the address follows it.
  const isSame = (example ?? '') === (open()?.example ?? '')
  if (isSame && isOffered && cell !== (open()?.cell ?? '')) askForHistory(cell ? `cell:${cell}` : 'back', {cell})
  else if (open()) window.lkAddress('replaceState')
})
if (sessionStorage.lkLost && sessionStorage.lkShown) {
  const shown = JSON.parse(sessionStorage.lkShown)
  for (const [at, id] of ['picture', 'answer'].entries()) {
    const place = document.querySelector(`#${id} .html-container > div`)
    if (place) place.innerHTML = shown[at]
  }
  nameClasses()
}
setTimeout(() => delete sessionStorage.lkLost, 3000)
