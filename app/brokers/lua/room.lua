-- The head of what joins, leaves and looks: who is in a room, behind settle.lua. Names and infos are of any bytes, so
-- they are told apart by lengths.
--
-- members  hash  client -> "<bytes of incarnation> <bytes of member> <incarnation><member><info>"
-- users    hash  member -> "<clients> <info of the newest>"

local LARGE = 500 -- members from which on a message says only how many there are; the same as in `board.py`

local function write_client(incarnation, member, info)
  return #incarnation .. ' ' .. #member .. ' ' .. incarnation .. member .. info
end

-- Incarnation, member and info; nothing for what is not of ours.
local function read_client(stored)
  local first, second, at = string.match(stored or '', '^(%d+) (%d+) ()')
  if not first then return nil end
  local name = at + tonumber(first)
  local info = name + tonumber(second)
  return string.sub(stored, at, name - 1), string.sub(stored, name, info - 1), string.sub(stored, info)
end

-- Number of clients and info.
local function read_user(stored)
  local clients, at = string.match(stored or '', '^(%d+) ()')
  if not clients then return 0, '{}' end
  return tonumber(clients), string.sub(stored, at)
end

-- One hash without the other can no longer be counted: forget both, and each worker's next look brings its own again.
local function mend(members, users)
  if redis.call('EXISTS', members) ~= redis.call('EXISTS', users) then redis.call('UNLINK', members, users) end
end

local function keep_room(members, users, ttl)
  if redis.call('PTTL', members) < tonumber(ttl) / 2 then
    redis.call('PEXPIRE', members, ttl)
    redis.call('PEXPIRE', users, ttl)
  end
end

-- What one call does to the users of a room: each is read when it is touched first, and written once at the end.
local function open_roll(users)
  return {key = users, names = {}, was = {}, is = {}, known = {}, info = {}}
end

local function change(roll, member, clients, info)
  if not roll.was[member] then
    local was, known = read_user(redis.call('HGET', roll.key, member))
    roll.names[#roll.names + 1] = member
    roll.was[member], roll.is[member], roll.known[member], roll.info[member] = was, was, known, known
  end
  roll.is[member] = math.max(0, roll.is[member] + clients)
  if info then roll.info[member] = info end
end

local function joiner(roll, member)
  return '{"member":' .. cjson.encode(member) .. ',"clients":' .. digits(roll.is[member]) ..
    ',"info":' .. cjson.encode(roll.info[member]) .. '}'
end

-- Write what has changed and tell who has come and who has left, in one message; in a large room, that somebody has.
-- Returns the number of members.
local function close_roll(roll, channel, attributes)
  local joined, left = {}, {}
  for _, member in ipairs(roll.names) do
    local was, is = roll.was[member], roll.is[member]
    if is == 0 then
      if was > 0 then
        redis.call('HDEL', roll.key, member)
        left[#left + 1] = '{"member":' .. cjson.encode(member) .. '}'
      end
    elseif is ~= was or roll.info[member] ~= roll.known[member] then
      redis.call('HSET', roll.key, member, digits(is) .. ' ' .. roll.info[member])
      if was == 0 then joined[#joined + 1] = member end
    end
  end
  local count = redis.call('HLEN', roll.key)
  if #joined + #left > 0 then
    if count > LARGE then joined, left = {}, {} end
    for at, member in ipairs(joined) do joined[at] = joiner(roll, member) end
    redis.call('PUBLISH', channel, '- p' .. attributes .. '\n{"joined":[' .. table.concat(joined, ',') ..
      '],"left":[' .. table.concat(left, ',') .. '],"count":' .. digits(count) .. '}')
  end
  return count
end

